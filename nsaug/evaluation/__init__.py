"""Evaluation: run a suite of benchmarks on models, cache the results, report them."""

from nsaug.evaluation.analyses import Analysis, NoiseAnalysis, NoiseRadius, NoiseTransfer, NullspacePair
from nsaug.evaluation.benchmarks import Benchmark
from nsaug.evaluation.cache import ResultCache
from nsaug.evaluation.corruption_error import CorruptionError
from nsaug.evaluation.models import EvalModel, UnreadableModel, find_models
from nsaug.evaluation.reporting.aggregate import Score
from nsaug.evaluation.runner import BenchmarkResult, NamedBenchmark, run_suite
from nsaug.evaluation.subset import Subset

__all__ = [
    "Analysis",
    "Benchmark",
    "BenchmarkResult",
    "CorruptionError",
    "EvalModel",
    "NamedBenchmark",
    "NoiseAnalysis",
    "NoiseRadius",
    "NoiseTransfer",
    "NullspacePair",
    "ResultCache",
    "Score",
    "Subset",
    "UnreadableModel",
    "find_models",
    "run_suite",
]
