"""Benchmarks that score every image, one per file."""

from nsaug.evaluation.benchmarks.attack import UnderAttack
from nsaug.evaluation.benchmarks.base import CONDITIONS, Batch, Constants, ImageBenchmark
from nsaug.evaluation.benchmarks.clean import Clean
from nsaug.evaluation.benchmarks.corruption import UnderCorruption
from nsaug.evaluation.benchmarks.cue_conflict import ShapeBias
from nsaug.evaluation.benchmarks.embedding_attack import UnderEmbeddingAttack
from nsaug.evaluation.benchmarks.noise import UnderNoise

__all__ = [
    "CONDITIONS",
    "Batch",
    "Clean",
    "Constants",
    "ImageBenchmark",
    "ShapeBias",
    "UnderAttack",
    "UnderCorruption",
    "UnderEmbeddingAttack",
    "UnderNoise",
]
