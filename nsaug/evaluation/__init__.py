"""Evaluation: run a suite of benchmarks on models, cache the results, report them."""

from nsaug.evaluation.analyses import Analysis, NoiseAnalysis, NoiseRadius, NoiseTransfer, NullspacePair
from nsaug.evaluation.benchmarks import Batch, Clean, ImageBenchmark, UnderAttack, UnderCorruption, UnderNoise
from nsaug.evaluation.cache import ResultCache
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.evaluation.models import EvalModel, UnreadableModel, find_models
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult, Measurement, PerImageResult
from nsaug.evaluation.runner import Runner
from nsaug.evaluation.subset import Subset
from nsaug.evaluation.suite import SuiteConfig, expand
from nsaug.evaluation.units import Entry, Plan, Planner, Unit
from nsaug.evaluation.workers import Workers, parse_shard

__all__ = [
    "Analysis",
    "AnalysisResult",
    "Batch",
    "BenchmarkResult",
    "Clean",
    "Entry",
    "EvalModel",
    "ImageBenchmark",
    "Measurement",
    "NoiseAnalysis",
    "NoiseRadius",
    "NoiseTransfer",
    "NullspacePair",
    "PerImageResult",
    "PerImageScores",
    "Plan",
    "Planner",
    "ResultCache",
    "Runner",
    "Subset",
    "SuiteConfig",
    "UnderAttack",
    "UnderCorruption",
    "UnderNoise",
    "Unit",
    "UnreadableModel",
    "Workers",
    "expand",
    "find_models",
    "parse_shard",
    "score_logits",
]
