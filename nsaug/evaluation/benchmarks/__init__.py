"""Benchmarks that score every image, one per file."""

from nsaug.evaluation.benchmarks.attack import UnderAttack
from nsaug.evaluation.benchmarks.base import CONDITIONS, Batch, Constants, ImageBenchmark
from nsaug.evaluation.benchmarks.clean import Clean
from nsaug.evaluation.benchmarks.corruption import UnderCorruption
from nsaug.evaluation.benchmarks.noise import UnderNoise

__all__ = [
    "CONDITIONS", "Batch", "Clean", "Constants", "ImageBenchmark", "UnderAttack", "UnderCorruption", "UnderNoise",
]  # fmt: skip
