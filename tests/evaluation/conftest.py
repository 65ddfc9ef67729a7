"""Results of a suite, made without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nsaug.data.dataset import ImageSet
from nsaug.evaluation import (
    BenchmarkResult,
    EvalModel,
    PerImageResult,
    Planner,
    ResultCache,
    Runner,
    Subset,
    score_logits,
)

EPS = (4 / 255, 8 / 255)


class Loader:
    """Images of a tensor by position."""

    def __init__(self, images):
        self.images = images

    def __call__(self, index):
        return self.images[index]

    def fingerprint(self, index):
        return str(float(self.images[index].sum()))


def make_images(images, labels):
    """An ImageSet of tensors, with ids image0, image1, ..."""
    ids = [f"image{index}" for index in range(len(images))]
    return ImageSet(ids, labels.tolist(), Loader(images), transform=lambda image: image)


def make_data(images, labels):
    """Minimal stand-in for a TestDataset."""
    return SimpleNamespace(
        images=make_images(images, labels), notes=[], class_subset=None, num_workers=0,
        class_names=[str(i) for i in range(10)], setup=lambda stage: None, configure=lambda config: None,
    )  # fmt: skip


def make_model(name="clean", seed=0, **metadata):
    class_names = [str(index) for index in range(10)]
    recorded = {"name": name, "method": name, "seed": seed, "class_names": class_names}
    metadata = recorded | {"settings": {"nullspace": {"eps": 0.03}}} | metadata
    return EvalModel(f"runs/{name}{seed}", None, metadata, name)


def make_scores(accuracy, n=50, seed=0):
    """Scores of n images of ten classes with this accuracy."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=rng)
    logits = torch.randn(n, 10, generator=rng)
    is_correct = torch.arange(n) < round(accuracy * n)
    predictions = torch.where(is_correct, labels, (labels + 1) % 10)
    logits[torch.arange(n), predictions] += 5
    return score_logits(logits, labels)


def make_result(model, accuracy, name="clean", strength=None, condition="clean", n=50, seed=0, **kwargs):
    """A result with this accuracy."""
    output = PerImageResult(
        [f"image{index}" for index in range(n)], make_scores(accuracy, n, seed), np.full((3, 8, 8, 3), 100, np.uint8)
    )
    class_names = [f"class {index}" for index in range(10)]
    return BenchmarkResult(model, name, strength, condition, output, class_names=class_names, **kwargs)


def make_results(model, clean, weak, strong, seed=0, **kwargs):
    """Results on clean images and under attack at two radii."""
    attacked = [
        make_result(model, accuracy, "pgd", eps, "attacked", seed=seed, **kwargs)
        for eps, accuracy in zip(EPS, (weak, strong), strict=True)
    ]
    return [make_result(model, clean, seed=seed, **kwargs), *attacked]


@pytest.fixture
def results():
    """Two names with two seeds: clean accuracy, and accuracy under attack at two radii."""
    results = []
    for name, clean, weak, strong in (("clean", 0.9, 0.5, 0.1), ("nullspace", 0.8, 0.6, 0.3)):
        for seed in range(2):
            results += make_results(make_model(name, seed), clean + 0.02 * seed, weak + 0.04 * seed, strong, seed)
    return results


def make_plan(entries, load, models=None, block_size=4, seed=0):
    """A plan of entries for models; `load` returns a model and its data."""
    return Planner(models or [make_model()], entries, load, Subset(seed=seed), block_size).build()


def make_runner(plan, load, folder):
    return Runner(plan, lambda model: load(model)[0], ResultCache(folder), torch.device("cpu"), 8, num_workers=0)


def evaluate(entries, load, folder, models=None, block_size=4, seed=0):
    """Results of entries in one process; `load` returns a model and its data."""
    runner = make_runner(make_plan(entries, load, models, block_size, seed), load, folder)
    runner.compute(runner.pending(), lambda unit: None)
    return runner.results()
