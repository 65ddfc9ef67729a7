"""ε-approximate nullspace noise (arXiv 2403.10476): synthesis, controls, the exact nullspace, analysis."""

from nsaug.nullspace.controls import InfluenceMatch, RandomNoise, match_influence
from nsaug.nullspace.exact import ExactNullspace
from nsaug.nullspace.influence import influence
from nsaug.nullspace.noise import NoiseResult, NoiseSource, embedding_rms
from nsaug.nullspace.per_image import NullspaceNoise, synthesize
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.nullspace.universal import UniversalConfig, UniversalNoise, learn_universal

__all__ = [
    "ExactNullspace",
    "InfluenceMatch",
    "NoiseResult",
    "NoiseSource",
    "NullspaceNoise",
    "RandomNoise",
    "UniversalConfig",
    "UniversalNoise",
    "embedding_rms",
    "influence",
    "learn_universal",
    "match_influence",
    "synthesize",
    "to_pixels",
]
