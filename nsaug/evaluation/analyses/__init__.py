"""Analyses of nullspace noise as in the paper, one per file."""

from nsaug.evaluation.analyses.base import Analysis, AnalysisImages
from nsaug.evaluation.analyses.exact import NullspacePair
from nsaug.evaluation.analyses.noise import NoiseAnalysis
from nsaug.evaluation.analyses.radius import NoiseRadius
from nsaug.evaluation.analyses.transfer import NoiseTransfer

__all__ = ["Analysis", "AnalysisImages", "NoiseAnalysis", "NoiseRadius", "NoiseTransfer", "NullspacePair"]
