"""Judging models: a suite's benchmarks become results that are kept, and every view is drawn from those."""

from nsaug.evaluation.analyses import Analysis, ExactPair, NoiseAnalysis, NoiseRadius, NoiseTransfer
from nsaug.evaluation.benchmarks import Benchmark
from nsaug.evaluation.cache import ResultCache
from nsaug.evaluation.corruption_error import CorruptionError
from nsaug.evaluation.models import EvalModel, find_models
from nsaug.evaluation.reporting.aggregate import Score
from nsaug.evaluation.runner import BenchmarkResult, NamedBenchmark, run_suite
from nsaug.evaluation.subset import Subset

__all__ = [
    "Analysis",
    "Benchmark",
    "BenchmarkResult",
    "CorruptionError",
    "EvalModel",
    "ExactPair",
    "NamedBenchmark",
    "NoiseAnalysis",
    "NoiseRadius",
    "NoiseTransfer",
    "ResultCache",
    "Score",
    "Subset",
    "find_models",
    "run_suite",
]
