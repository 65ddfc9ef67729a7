"""Results without a model: what a suite would have found."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nsaug.attacks import PGD
from nsaug.evaluation import Benchmark, BenchmarkResult, EvalModel, NamedBenchmark
from nsaug.evaluation.cache import PerImageResult
from nsaug.evaluation.metrics import score_predictions

EPS = (4 / 255, 8 / 255)
CLEAN = NamedBenchmark("clean", Benchmark())
ATTACKED = NamedBenchmark("pgd", Benchmark(attack=PGD(), vary="eps", values=EPS))


class Images:
    """Enough of an ImageSet and its loader."""

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
            part = slice(start, start + self.batch_size)
            yield self.images[part], self.labels[part], self.ids[part]

    def digest(self):
        return str(float(self.images.sum()))

    def subset(self, indices):
        return Images(self.images[indices], self.labels[indices], self.batch_size)


def data_of(images, labels):
    """Enough of an ImageDataModule."""
    return SimpleNamespace(
        images=Images(images, labels), readable_loader=lambda found: found, notes=[], class_subset=None,
        class_names=[str(i) for i in range(10)], setup=lambda stage: None, configure=lambda config: None,
    )  # fmt: skip


def subject(name="clean", seed=0, **record):
    told = {"name": name, "method": name, "seed": seed, "settings": {"nullspace": {"eps": 0.03}}} | record
    return EvalModel(f"runs/{name}{seed}", None, told, name)


def judged(accuracy, n=50, seed=0):
    """n images of ten classes, of which a share is right."""
    from nsaug.evaluation.metrics import PerImageScores

    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=rng)
    logits = torch.randn(n, 10, generator=rng)
    right = torch.arange(n) < round(accuracy * n)
    wanted = torch.where(right, labels, (labels + 1) % 10)
    logits[torch.arange(n), wanted] += 5
    return PerImageScores(**{key: value.numpy() for key, value in score_predictions(logits, labels).items()})


def outcome(of, entry, accuracies, n=50, seed=0):
    ids = [f"image{index}" for index in range(n)]
    found = [judged(accuracy, n, seed) for accuracy in accuracies]
    pictures = np.full((len(found), 3, 8, 8, 3), 100, np.uint8)
    return BenchmarkResult(of, entry, PerImageResult(entry.benchmark.strengths, ids, found, [0, 20, 40], pictures))


@pytest.fixture
def outcomes():
    """Two names, two seeds each: clean accuracy, and under attack at two radii."""
    found = []
    for name, clean, weak, strong in (("clean", 0.9, 0.5, 0.1), ("nullspace", 0.8, 0.6, 0.3)):
        for seed in range(2):
            of = subject(name, seed)
            found.append(outcome(of, CLEAN, [clean + 0.02 * seed], seed=seed))
            found.append(outcome(of, ATTACKED, [weak + 0.04 * seed, strong], seed=seed))
    return found
