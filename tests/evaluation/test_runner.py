"""The engine: finished work is found again, changed work is done again, failed work costs nothing else."""

import copy
import dataclasses
import logging

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nsaug.attacks import PGD
from nsaug.evaluation import NamedBenchmark, ResultCache, Subset, run_suite
from nsaug.evaluation.benchmarks import Benchmark
from nsaug.evaluation.cache import model_digest
from nsaug.models.factory import build_vit
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit
from tests.evaluation.conftest import ATTACKED, CLEAN, data_of, subject


@pytest.fixture
def ran(monkeypatch):
    """The benchmarks that were really run."""
    names, run = [], Benchmark.run
    monkeypatch.setattr(
        Benchmark, "run", lambda self, *rest, **more: names.append(self.condition) or run(self, *rest, **more)
    )
    return names


@pytest.fixture
def suite(vit, images, labels, tmp_path):
    def go(subjects=None, entries=(CLEAN, ATTACKED), opened=None, seed=0):
        done = []
        found = list(
            run_suite(
                subjects or [subject()], list(entries), opened or (lambda _: (vit, data_of(images, labels))),
                ResultCache(tmp_path), Subset(seed=seed), lambda title, work: done.append(work),
            )
        )  # fmt: skip
        return found, sum(done)

    return go


def same(first, second):
    for ours, theirs in zip(first, second, strict=True):
        assert ours.result.ids == theirs.result.ids
        assert ours.result.strengths == theirs.result.strengths
        np.testing.assert_array_equal(ours.result.pictures, theirs.result.pictures)
        for a, b in zip(ours.result.judged, theirs.result.judged, strict=True):
            for field in vars(a):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field), strict=True)


def test_finished_work_is_not_repeated(suite, ran):
    first, work = suite()
    assert ran == ["clean", "attacked"]
    assert work == CLEAN.benchmark.work(6) + ATTACKED.benchmark.work(6)
    second, again = suite()
    assert ran == ["clean", "attacked"]
    assert again == work, "the time left counts what need not be done as done"
    same(first, second)


def test_attacks_transfer_between_models(images, labels, tmp_path):
    """Images made on one model and judged on another; of several seeds the first is the source."""
    models = {}
    for name, scale in (("a0", 1.0), ("a1", 2.0), ("b0", -1.0)):
        models[name] = tiny_vit().double().eval()
        with torch.no_grad():
            models[name].model.head.weight.mul_(scale)
    attack = Benchmark(attack=PGD(num_steps=3), vary="eps", values=(0.1,))
    entries = [NamedBenchmark("moved", dataclasses.replace(attack, transfer=True)), NamedBenchmark("pgd", attack)]
    subjects = [subject("a", 0), subject("a", 1), subject("b", 0)]
    found = list(
        run_suite(
            subjects, entries, lambda of: (models[f"{of.name}{of.record['seed']}"], data_of(images, labels)),
            ResultCache(tmp_path), Subset(), lambda title, work: None,
        )
    )  # fmt: skip
    told = [(each.subject.label, each.entry.name) for each in found]
    assert told[3:] == [
        ("a, seed 0", "moved from b"), ("a, seed 1", "moved from b"), ("b, seed 0", "moved from a"),
    ]  # fmt: skip
    own = next(each.result for each in found if (each.subject.label, each.entry.name) == ("a, seed 0", "pgd"))
    moved = found[-1].result
    # Attacks follow from the image, the seed and the strength: those of "moved from a" are those of a's own "pgd".
    np.testing.assert_array_equal(moved.pictures, own.pictures)
    attacked = torch.from_numpy(own.pictures[0] / 255.0).permute(0, 3, 1, 2)
    said = models["b0"](attacked).softmax(1).amax(1).detach()
    np.testing.assert_allclose(moved.judged[0].confidence, said, atol=0.02)  # pictures have 8 bits
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_only_attacks_are_transferred():
    with pytest.raises(ValidationError, match="only an attack's images are transferred"):
        Benchmark(transfer=True)


def test_the_same_work_is_found_under_another_name_and_path(suite, ran):
    suite(entries=[CLEAN])
    suite([subject("renamed", seed=7)], entries=[type(CLEAN)("plain", CLEAN.benchmark)])
    assert ran == ["clean"]


def test_defaults_are_part_of_what_a_result_depends_on():
    told = ATTACKED.benchmark.settings
    defaults = {"step_size": None, "random_start": True, "restarts": 1, "loss": "ce"}
    assert told["attack"] == {"class": "PGD", "eps": 4 / 255, "num_steps": 10} | defaults
    assert told["values"] == [4 / 255, 8 / 255]


def test_architectures_of_one_class_are_told_apart():
    """GELU or its quick approximation: the class, the weights' names and shapes and the images are the same."""
    names = ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai")
    args = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    digests = []
    for name in names:
        torch.manual_seed(0)
        digests.append(model_digest(build_vit(name, num_classes=2, img_size=32, args=args)))
    assert digests[0] != digests[1]


def test_work_that_was_stopped_goes_on_where_it_was(suite, ran, monkeypatch):
    run = Benchmark.run

    def killed(self, *rest, **more):
        if self.condition == "attacked":
            raise KeyboardInterrupt
        return run(self, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Benchmark, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            suite()
    assert ran == ["clean"]
    suite()
    assert ran == ["clean", "attacked"]


def test_what_changed_is_judged_anew_and_said(suite, ran, vit, images, labels, caplog):
    caplog.set_level(logging.INFO)
    first, _ = suite(entries=[CLEAN])
    moved = copy.deepcopy(vit)
    with torch.no_grad():
        moved.model.head.bias[0] += 1e-3
    changes = {
        "weights": {"opened": lambda _: (moved, data_of(images, labels))},
        "data": {"opened": lambda _: (vit, data_of(images + 1e-3, labels))},
        "seed": {"seed": 1},
    }
    for part, change in changes.items():
        caplog.clear()
        suite(entries=[CLEAN], **change)
        assert "clean, seed 0: clean is judged anew: changed since it was last are its" in caplog.text
        assert part in caplog.text
    suite(entries=[type(CLEAN)("clean", ATTACKED.benchmark)])
    assert len(ran) == 5
    back, _ = suite(entries=[CLEAN])
    assert len(ran) == 5, "the first is still there"
    same(first, back)


def test_a_failing_benchmark_costs_no_other(suite, ran, monkeypatch, caplog):
    run = Benchmark.run

    def failing(self, *rest, **more):
        if self.condition == "clean":
            raise RuntimeError("no such kernel\nand more")
        return run(self, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Benchmark, "run", failing)
        found, _ = suite()
    assert [each.result is None for each in found] == [True, False]
    assert found[0].failure == "RuntimeError: no such kernel"
    assert "clean, seed 0: clean failed: RuntimeError: no such kernel" in caplog.text
    found, _ = suite()
    assert ran == ["attacked", "clean"], "what failed is tried again, what was done is not"


def test_a_model_that_cannot_be_opened_costs_no_other(suite, vit, images, labels):
    def opened(of):
        if of.name == "broken":
            raise UserError("runs/broken0 cannot be read")
        return vit, data_of(images, labels)

    found, _ = suite([subject("broken"), subject()], opened=opened)
    assert [each.failure for each in found] == ["runs/broken0 cannot be read"] * 2 + [None] * 2


def test_a_damaged_result_is_judged_anew(suite, ran, tmp_path):
    suite(entries=[CLEAN])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    found, _ = suite(entries=[CLEAN])
    assert ran == ["clean"] * 2
    assert found[0].result is not None
