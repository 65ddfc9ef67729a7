"""Judging models: a suite's benchmarks become results that are kept, and every view is drawn from those."""

from nsaug.evaluation.analysis import Analysis, ExactPair, NoiseAnalysis, NoiseRadius, NoiseTransfer
from nsaug.evaluation.benchmark import Benchmark
from nsaug.evaluation.corruption_error import CorruptionError
from nsaug.evaluation.runner import Entry, Outcome, run_suite
from nsaug.evaluation.selection import Selection
from nsaug.evaluation.store import Store
from nsaug.evaluation.subjects import Subject, find_subjects
from nsaug.evaluation.table import Score

__all__ = [
    "Analysis",
    "Benchmark",
    "CorruptionError",
    "Entry",
    "ExactPair",
    "NoiseAnalysis",
    "NoiseRadius",
    "NoiseTransfer",
    "Outcome",
    "Score",
    "Selection",
    "Store",
    "Subject",
    "find_subjects",
    "run_suite",
]
