"""run_suite: cached results are reused, changes are evaluated again, failures do not stop other benchmarks."""

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
from tests.evaluation.conftest import ATTACKED, CLEAN, make_data, make_model


@pytest.fixture
def calls(monkeypatch):
    """Conditions of the benchmarks that were run rather than loaded from the cache."""
    conditions, run = [], Benchmark.run

    def recording_run(self, *args, **kwargs):
        conditions.append(self.condition)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Benchmark, "run", recording_run)
    return conditions


@pytest.fixture
def suite(vit, images, labels, tmp_path):
    def run(models=None, benchmarks=(CLEAN, ATTACKED), load=None, seed=0):
        num_forwards = []
        results = list(
            run_suite(
                models or [make_model()], list(benchmarks), load or (lambda _: (vit, make_data(images, labels))),
                ResultCache(tmp_path), Subset(seed=seed), lambda title, count: num_forwards.append(count),
            )
        )  # fmt: skip
        return results, sum(num_forwards)

    return run


def patch_run(monkeypatch, condition, error):
    """Make benchmarks of one condition raise an error."""
    run = Benchmark.run

    def failing_run(self, *args, **kwargs):
        if self.condition == condition:
            raise error
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Benchmark, "run", failing_run)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.output.ids == b.output.ids
        assert a.output.strengths == b.output.strengths
        np.testing.assert_array_equal(a.output.sample_images, b.output.sample_images)
        for scores, others in zip(a.output.scores, b.output.scores, strict=True):
            for field in vars(scores):
                np.testing.assert_array_equal(getattr(scores, field), getattr(others, field), strict=True)


def test_finished_benchmarks_are_loaded_from_the_cache(suite, calls):
    first, num_forwards = suite()
    assert calls == ["clean", "attacked"]
    assert num_forwards == CLEAN.benchmark.num_forwards(6) + ATTACKED.benchmark.num_forwards(6)
    second, cached_forwards = suite()
    assert calls == ["clean", "attacked"]
    assert cached_forwards == num_forwards, "progress counts cached results as done"
    assert_same(first, second)


def test_attacks_transfer_between_models(images, labels, tmp_path):
    """Images are made on the first run of every other name."""
    vits = {}
    for name, scale in (("a0", 1.0), ("a1", 2.0), ("b0", -1.0)):
        vits[name] = tiny_vit().double().eval()
        with torch.no_grad():
            vits[name].model.head.weight.mul_(scale)
    attack = Benchmark(attack=PGD(num_steps=3), param="eps", strengths=(0.1,))
    transfer = dataclasses.replace(attack, transfer=True)
    results = list(
        run_suite(
            [make_model("a", 0), make_model("a", 1), make_model("b", 0)],
            [NamedBenchmark("transfer", transfer), NamedBenchmark("pgd", attack)],
            lambda model: (vits[f"{model.name}{model.metadata['seed']}"], make_data(images, labels)),
            ResultCache(tmp_path), Subset(), lambda title, count: None,
        )
    )  # fmt: skip
    by_key = {(result.model.label, result.name): result.output for result in results}
    assert list(by_key)[3:] == [
        ("a, seed 0", "transfer from b"), ("a, seed 1", "transfer from b"), ("b, seed 0", "transfer from a"),
    ]  # fmt: skip
    white_box, transferred = by_key["a, seed 0", "pgd"], by_key["b, seed 0", "transfer from a"]
    # Attacks depend on the image, the seed and the strength alone, so that both benchmarks use the same images.
    np.testing.assert_array_equal(transferred.sample_images, white_box.sample_images)
    attacked = torch.from_numpy(white_box.sample_images[0] / 255.0).permute(0, 3, 1, 2)
    confidence = vits["b0"](attacked).softmax(1).amax(1).detach()
    np.testing.assert_allclose(transferred.scores[0].confidence, confidence, atol=0.02)  # sample images have 8 bits
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_only_attacks_transfer():
    with pytest.raises(ValidationError, match="transfer=true needs an attack"):
        Benchmark(transfer=True)


def test_cache_ignores_names_and_paths(suite, calls):
    suite(benchmarks=[CLEAN])
    suite([make_model("renamed", seed=7)], benchmarks=[NamedBenchmark("plain", CLEAN.benchmark)])
    assert calls == ["clean"]


def test_settings_include_defaults():
    settings = ATTACKED.benchmark.settings
    defaults = {"step_size": None, "random_start": True, "restarts": 1, "loss": "ce"}
    assert settings["attack"] == {"class": "PGD", "eps": 4 / 255, "num_steps": 10} | defaults
    assert settings["strengths"] == [4 / 255, 8 / 255]


def test_digest_depends_on_the_architecture():
    """GELU or its quick approximation: class, names and shapes of the weights and the images are the same."""
    names = ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai")
    args = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    digests = []
    for name in names:
        torch.manual_seed(0)
        digests.append(model_digest(build_vit(name, num_classes=2, img_size=32, args=args)))
    assert digests[0] != digests[1]


def test_interrupted_suite_resumes(suite, calls, monkeypatch):
    with monkeypatch.context() as patch:
        patch_run(patch, "attacked", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            suite()
    assert calls == ["clean"]
    suite()
    assert calls == ["clean", "attacked"]


def test_changes_are_evaluated_again_and_logged(suite, calls, vit, images, labels, caplog):
    caplog.set_level(logging.INFO)
    first, _ = suite(benchmarks=[CLEAN])
    other_vit = copy.deepcopy(vit)
    with torch.no_grad():
        other_vit.model.head.bias[0] += 1e-3
    changes = {
        "weights": {"load": lambda _: (other_vit, make_data(images, labels))},
        "data": {"load": lambda _: (vit, make_data(images + 1e-3, labels))},
        "seed": {"seed": 1},
    }
    for part, change in changes.items():
        caplog.clear()
        suite(benchmarks=[CLEAN], **change)
        assert "clean, seed 0: clean: evaluating again, changed since the last time:" in caplog.text
        assert part in caplog.text
    suite(benchmarks=[NamedBenchmark("clean", ATTACKED.benchmark)])
    assert len(calls) == 5
    again, _ = suite(benchmarks=[CLEAN])
    assert len(calls) == 5, "the first result is still cached"
    assert_same(first, again)


def test_failing_benchmark_does_not_stop_others(suite, calls, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch_run(patch, "clean", RuntimeError("no such kernel\nand more"))
        results, _ = suite()
    assert [result.output is None for result in results] == [True, False]
    assert results[0].failure == "RuntimeError: no such kernel"
    assert "clean, seed 0: clean failed: RuntimeError: no such kernel" in caplog.text
    suite()
    assert calls == ["attacked", "clean"], "only the failed benchmark is run again"


def test_model_that_cannot_be_loaded_does_not_stop_others(suite, vit, images, labels):
    def load(model):
        if model.name == "broken":
            raise UserError("runs/broken0 cannot be read")
        return vit, make_data(images, labels)

    results, _ = suite([make_model("broken"), make_model()], load=load)
    assert [result.failure for result in results] == ["runs/broken0 cannot be read"] * 2 + [None] * 2


def test_damaged_cache_entry_is_evaluated_again(suite, calls, tmp_path):
    suite(benchmarks=[CLEAN])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    results, _ = suite(benchmarks=[CLEAN])
    assert calls == ["clean"] * 2
    assert results[0].output is not None
