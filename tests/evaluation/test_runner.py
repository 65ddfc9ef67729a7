"""Units of work: cached, resumed, shared between processes; failures stay local."""

import copy
import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch

from nsaug.attacks import PGD
from nsaug.data.dataset import UnreadableImage
from nsaug.data.fingerprints import UNREADABLE
from nsaug.evaluation import Clean, Entry, ResultCache, UnderAttack, UnderNoise
from nsaug.evaluation.models import model_digest
from nsaug.models.factory import build_vit
from nsaug.nullspace import NullspaceNoise
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit
from tests.evaluation.conftest import evaluate, make_data, make_model, make_plan, make_runner

CLEAN = Entry("clean", Clean())
ATTACKED = Entry("pgd", UnderAttack(attack=PGD(num_steps=3, eps=0.1)), 0.1)
NOISED = Entry("noise", UnderNoise(noise=NullspaceNoise(num_steps=1, init_scale=1.0)), 1.0)
ENTRIES = [CLEAN, ATTACKED, NOISED]


@pytest.fixture
def calls(monkeypatch):
    """Number of images of every block that was computed rather than loaded from the cache, by benchmark class."""
    blocks = []
    for benchmark in (Clean, UnderAttack, UnderNoise):

        def record(self, model, batch, seed, evaluate=benchmark.evaluate):
            blocks.append((type(self).__name__, len(batch)))
            return evaluate(self, model, batch, seed)

        monkeypatch.setattr(benchmark, "evaluate", record)
    return blocks


@pytest.fixture
def load(vit, images, labels):
    return lambda model: (vit, make_data(images, labels))


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a.name, a.strength, a.output.ids, a.notes) == (b.name, b.strength, b.output.ids, b.notes)
        np.testing.assert_array_equal(a.output.sample_images, b.output.sample_images)
        for (name, values), other in zip(vars(a.output.scores).items(), vars(b.output.scores).values(), strict=True):
            assert str(values) == str(other), name


def test_blocks_are_loaded_from_the_cache(load, calls, tmp_path):
    first = evaluate(ENTRIES, load, tmp_path)
    assert sorted(calls) == sorted([(name, n) for name in ("Clean", "UnderAttack", "UnderNoise") for n in (4, 2)])
    calls.clear()
    assert_same(first, evaluate(ENTRIES, load, tmp_path))
    assert calls == []


def test_expensive_units_come_first(load):
    plan = make_plan(ENTRIES, load)
    assert [plan.jobs[unit.job].entry.name for unit in plan.units] == ["pgd", "pgd", "noise", "noise", "clean", "clean"]
    assert [result.entry.name for result in plan.jobs] == ["clean", "pgd", "noise"], "the report has the suite's order"


def test_order_and_interruptions_do_not_change_results(load, tmp_path):
    """Units in any order, by several runners with a cache in common, some of which stop in the middle."""
    expected = evaluate(ENTRIES, load, tmp_path / "one")
    rng = random.Random(0)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        while True:
            runner = make_runner(make_plan(ENTRIES, load), load, folder)
            pending = runner.pending()
            if not pending:
                break
            rng.shuffle(pending)
            runner.compute(pending[: rng.randint(1, 3)], lambda unit: None)
        assert_same(expected, runner.results())


def test_shards_are_disjoint_and_independent_of_the_cache(load, tmp_path):
    shards = [
        {unit.key for unit in make_runner(make_plan(ENTRIES, load), load, tmp_path).pending(shard, 3)}
        for shard in range(3)
    ]
    assert sum(map(len, shards)) == len(set.union(*shards)) == 6
    for shard in range(3):
        runner = make_runner(make_plan(ENTRIES, load), load, tmp_path)
        assert {unit.key for unit in runner.pending(shard, 3)} == shards[shard]
        runner.compute(runner.pending(shard, 3), lambda unit: None)
    runner = make_runner(make_plan(ENTRIES, load), load, tmp_path)
    assert runner.pending() == []
    assert_same(evaluate(ENTRIES, load, tmp_path / "one"), runner.results())


@pytest.mark.parametrize("entries", itertools.permutations(ENTRIES, 2))
def test_other_benchmarks_do_not_change_results(load, tmp_path, entries):
    together = {result.name: result for result in evaluate(ENTRIES, load, tmp_path / "all")}
    for result in evaluate(list(entries), load, tmp_path / "some"):
        assert_same([result], [together[result.name]])


def test_a_larger_subset_reuses_full_blocks(vit, calls, tmp_path):
    images = torch.rand(20, 3, 8, 8, dtype=torch.float64)
    data = make_data(images, torch.zeros(20, dtype=torch.long))
    from nsaug.evaluation import Planner, Subset

    for max_images in (8, 20):
        plan = Planner([make_model()], [CLEAN], lambda model: (vit, data), Subset(max_images=max_images), 4).build()
        runner = make_runner(plan, lambda model: (vit, data), tmp_path)
        runner.compute(runner.pending(), lambda unit: None)
    assert len(calls) == 5, "2 blocks of the first 8 images, then the 3 others"


def test_cache_ignores_names_and_paths(load, calls, tmp_path):
    evaluate([CLEAN], load, tmp_path)
    evaluate([Entry("plain", Clean())], load, tmp_path, models=[make_model("renamed", seed=7)])
    assert len(calls) == 2


def test_changes_are_evaluated_again(load, calls, vit, images, labels, tmp_path):
    first = evaluate([NOISED], load, tmp_path)
    other_vit = copy.deepcopy(vit)
    with torch.no_grad():
        other_vit.model.head.bias[0] += 1e-3
    stronger = Entry("noise", UnderNoise(noise=NullspaceNoise(num_steps=1, init_scale=1.5)), 1.5)
    changes = {
        "weights": ([NOISED], lambda _: (other_vit, make_data(images, labels)), {}),
        "data": ([NOISED], lambda _: (vit, make_data(images + 1e-3, labels)), {}),
        "seed": ([NOISED], load, {"seed": 1}),
        "strength": ([stronger], load, {}),
        "blocks": ([NOISED], load, {"block_size": 3}),
    }
    for name, (entries, loader, kwargs) in changes.items():
        calls.clear()
        evaluate(entries, loader, tmp_path, **kwargs)
        assert len(calls) == 2, name
    calls.clear()
    assert_same(first, evaluate([NOISED], load, tmp_path))
    assert calls == [], "the first result is still cached"


def test_settings_include_defaults():
    settings = ATTACKED.benchmark.settings
    defaults = {"step_size": None, "random_start": True, "restarts": 1, "loss": "ce"}
    assert settings["attack"] == {"class": "PGD", "eps": 0.1, "num_steps": 3} | defaults


def test_digest_depends_on_the_architecture():
    """GELU or its quick approximation: class, names and shapes of the weights and the images are the same."""
    names = ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai")
    args = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    digests = []
    for name in names:
        torch.manual_seed(0)
        digests.append(model_digest(build_vit(name, num_classes=2, img_size=32, args=args)))
    assert digests[0] != digests[1]


def test_attacks_transfer_between_models(images, labels, tmp_path):
    """Images are made on the first run of every other name."""
    vits = {}
    for name, scale in (("a0", 1.0), ("a1", 2.0), ("b0", -1.0)):
        vits[name] = tiny_vit().double().eval()
        with torch.no_grad():
            vits[name].model.head.weight.mul_(scale)
    transfer = Entry("transfer", dataclasses.replace(ATTACKED.benchmark, transfer=True), 0.1)
    results = evaluate(
        [transfer, ATTACKED],
        lambda model: (vits[f"{model.name}{model.metadata['seed']}"], make_data(images, labels)),
        tmp_path,
        models=[make_model("a", 0), make_model("a", 1), make_model("b", 0)],
        block_size=6,
    )
    by_key = {(result.model.label, result.name): result.output for result in results}
    assert list(by_key)[3:] == [
        ("a, seed 0", "transfer from b"), ("a, seed 1", "transfer from b"), ("b, seed 0", "transfer from a"),
    ]  # fmt: skip
    white_box, transferred = by_key["a, seed 0", "pgd"], by_key["b, seed 0", "transfer from a"]
    # Attacks depend on the image and the seed alone, so that both benchmarks use the same images.
    np.testing.assert_array_equal(transferred.sample_images, white_box.sample_images)
    attacked = torch.from_numpy(white_box.sample_images / 255.0).permute(0, 3, 1, 2)
    confidence = vits["b0"](attacked).softmax(1).amax(1).detach()
    np.testing.assert_allclose(transferred.scores.confidence, confidence, atol=0.02)  # sample images have 8 bits


def test_failing_benchmark_does_not_stop_others(load, calls, monkeypatch, caplog, tmp_path):
    with monkeypatch.context() as patch:

        def fail(self, model, batch, seed):
            raise RuntimeError("no such kernel\nand more")

        patch.setattr(Clean, "evaluate", fail)
        results = evaluate(ENTRIES, load, tmp_path)
    assert [result.output is None for result in results] == [True, False, False]
    assert results[0].failure == "RuntimeError: no such kernel"
    assert caplog.text.count("clean, seed 0: clean failed: RuntimeError: no such kernel") == 1, "not for every block"
    calls.clear()
    evaluate(ENTRIES, load, tmp_path)
    assert calls == [("Clean", 4), ("Clean", 2)], "only the failed benchmark is run again"


def test_images_of_a_failed_benchmark_are_not_loaded(vit, images, labels, monkeypatch, tmp_path):
    data, loaded = make_data(images, labels), []
    monkeypatch.setattr(Clean, "evaluate", lambda self, model, batch, seed: 1 / 0)
    data.images.transform = lambda image: loaded.append(1) or image
    (result,) = evaluate([CLEAN], lambda model: (vit, data), tmp_path)
    assert result.failure == "ZeroDivisionError: division by zero"
    assert len(loaded) == 4, "the first of two blocks"


def test_model_that_cannot_be_loaded_does_not_stop_others(vit, images, labels, tmp_path):
    def load(model):
        if model.name == "broken":
            raise UserError("runs/broken0 cannot be read")
        return vit, make_data(images, labels)

    results = evaluate([CLEAN, ATTACKED], load, tmp_path, models=[make_model("broken"), make_model()])
    assert [result.failure for result in results] == ["runs/broken0 cannot be read"] * 2 + [None] * 2


def test_unreadable_images_are_left_out_and_noted(vit, images, labels, tmp_path):
    data = make_data(images, labels)
    load_image = data.images.load

    class PartlyReadable:
        def __init__(self, unreadable):
            self.unreadable = unreadable

        def __call__(self, index):
            if index in self.unreadable:
                raise UnreadableImage("truncated")
            return load_image(index)

        def fingerprint(self, index):
            return load_image.fingerprint(index)

    data.images.load = PartlyReadable({0, 3})
    for result in evaluate(ENTRIES, lambda model: (vit, data), tmp_path / "partly"):
        assert sorted(result.output.ids) == ["image1", "image2", "image4", "image5"]
        assert "2 of 6 images cannot be read (image0, image3)" in result.notes
    data.images.load = PartlyReadable(set(range(6)))
    (result,) = evaluate([CLEAN], lambda model: (vit, data), tmp_path / "none")
    assert result.failure == "none of the 6 images can be read"


@pytest.mark.parametrize(
    ("fault", "entry", "num_missing"),
    [
        ("damaged", CLEAN, 0),
        ("unreadable from the start", CLEAN, 0),
        ("unreadable from the start", NOISED, 0),
        ("removed", CLEAN, 1),
        ("unreadable once", CLEAN, 1),
        ("removed", NOISED, 2),  # rms(u) was measured without the image: the other block is not cached either
    ],
)
def test_results_without_a_lost_image_are_not_cached(vit, images, labels, caplog, tmp_path, fault, entry, num_missing):
    """The key of a result describes all images: when a lost one is back, the result has to be computed with it."""
    data = make_data(images, labels)
    load_image, failures = data.images.load, []

    class Faulty:
        def __call__(self, index):
            if index == 3 and not (failures and fault == "unreadable once"):
                failures.append(index)
                raise UnreadableImage("cannot be read")
            return load_image(index)

        def fingerprint(self, index):
            is_missing = (planned and fault == "removed") or fault == "unreadable from the start"
            return UNREADABLE if index == 3 and is_missing else load_image.fingerprint(index)

    data.images.load, planned = Faulty(), False
    load = lambda model: (vit, data)  # noqa: E731
    plan = make_plan([entry], load)
    planned = True
    (result,) = make_runner(plan, load, tmp_path).results()
    assert "1 of 6 images cannot be read (image3)" in result.output.notes
    assert len(make_runner(plan, load, tmp_path).pending()) == num_missing
    assert caplog.text.count("results on them are not cached") == bool(num_missing)


def test_results_with_a_restored_image_are_not_cached(vit, images, labels, tmp_path):
    """The key says that the image could not be opened."""
    data = make_data(images, labels)
    fingerprint = data.images.load.fingerprint
    data.images.load.fingerprint = lambda index: UNREADABLE if index == 3 else fingerprint(index)
    load = lambda model: (vit, data)  # noqa: E731
    runner = make_runner(make_plan([CLEAN], load), load, tmp_path)
    assert len(runner.results()[0].output.ids) == 6
    assert len(runner.pending()) == 1


def test_error_while_loading_fails_the_benchmark(vit, images, labels, tmp_path):
    data = make_data(images, labels)
    data.images.transform = lambda image: image.no_such_attribute
    (result,) = evaluate([CLEAN], lambda model: (vit, data), tmp_path)
    assert "no_such_attribute" in result.failure


def test_damaged_cache_entries_are_computed_again(load, calls, tmp_path):
    expected = evaluate([CLEAN], load, tmp_path)
    for file in tmp_path.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert_same(expected, evaluate([CLEAN], load, tmp_path))
    assert len(calls) == 4


def test_results_reach_the_tables_when_the_cache_cannot_be_written(load, monkeypatch, caplog, tmp_path):
    expected = evaluate(ENTRIES, load, tmp_path / "normal")

    def full_disk(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResultCache, "save", full_disk)
    assert_same(expected, evaluate(ENTRIES, load, tmp_path / "full"))
    assert caplog.text.count("results cannot be written to the cache") == 1
