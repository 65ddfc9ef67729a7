"""Results of a suite, made without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nsaug.attacks import PGD
from nsaug.evaluation import Benchmark, BenchmarkResult, EvalModel, NamedBenchmark
from nsaug.evaluation.cache import PerImageResult
from nsaug.evaluation.metrics import PerImageScores, score_predictions

EPS = (4 / 255, 8 / 255)
CLEAN = NamedBenchmark("clean", Benchmark())
ATTACKED = NamedBenchmark("pgd", Benchmark(attack=PGD(), param="eps", strengths=EPS))


class Images:
    """Minimal stand-in for an ImageSet and its loader."""

    def __init__(self, images, labels, batch_size=4):
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.ids = [f"image{index}" for index in range(len(images))]
        self.dataset = self

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index], self.ids[index]

    def __iter__(self):
        for start in range(0, len(self.images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield self.images[batch], self.labels[batch], self.ids[batch]

    def digest(self):
        return str(float(self.images.sum()))

    def subset(self, indices):
        return Images(self.images[indices], self.labels[indices], self.batch_size)


def make_data(images, labels):
    """Minimal stand-in for a TestDataset."""
    return SimpleNamespace(
        images=Images(images, labels), readable_loader=lambda images: images, notes=[], class_subset=None,
        class_names=[str(i) for i in range(10)], setup=lambda stage: None, configure=lambda config: None,
    )  # fmt: skip


def make_model(name="clean", seed=0, **metadata):
    metadata = {"name": name, "method": name, "seed": seed, "settings": {"nullspace": {"eps": 0.03}}} | metadata
    return EvalModel(f"runs/{name}{seed}", None, metadata, name)


def make_scores(accuracy, n=50, seed=0):
    """Scores of n images of ten classes with this accuracy."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=rng)
    logits = torch.randn(n, 10, generator=rng)
    is_correct = torch.arange(n) < round(accuracy * n)
    predictions = torch.where(is_correct, labels, (labels + 1) % 10)
    logits[torch.arange(n), predictions] += 5
    return PerImageScores(**{key: value.numpy() for key, value in score_predictions(logits, labels).items()})


def make_result(model, named_benchmark, accuracies, n=50, seed=0):
    ids = [f"image{index}" for index in range(n)]
    scores = [make_scores(accuracy, n, seed) for accuracy in accuracies]
    images = np.full((len(scores), 3, 8, 8, 3), 100, np.uint8)
    strengths = named_benchmark.benchmark.evaluated_strengths
    return BenchmarkResult(model, named_benchmark, PerImageResult(strengths, ids, scores, [0, 20, 40], images))


@pytest.fixture
def results():
    """Two names with two seeds: clean accuracy, and accuracy under attack at two radii."""
    results = []
    for name, clean, weak, strong in (("clean", 0.9, 0.5, 0.1), ("nullspace", 0.8, 0.6, 0.3)):
        for seed in range(2):
            model = make_model(name, seed)
            results.append(make_result(model, CLEAN, [clean + 0.02 * seed], seed=seed))
            results.append(make_result(model, ATTACKED, [weak + 0.04 * seed, strong], seed=seed))
    return results
