"""Judging models: benchmarks become rows of one tidy table, and every view is drawn from it."""

from nsaug.evaluation.benchmark import Benchmark
from nsaug.evaluation.subjects import Subject, find_subjects
from nsaug.evaluation.table import plot, summarise, terminal_table, write

__all__ = ["Benchmark", "Subject", "find_subjects", "plot", "summarise", "terminal_table", "write"]
