"""The paper's idea, knowing nothing of training: noise on the patch embeddings that moves no prediction by much."""

from nsaug.nullspace.exact import ExactNullspace
from nsaug.nullspace.influence import influence
from nsaug.nullspace.scale_search import Match, match_influence, scaled
from nsaug.nullspace.synthesis import NoiseSynthesis, Refinement, Synthesis, computes_as_eval, embedding_rms
from nsaug.nullspace.universal import EpochSynthesis

__all__ = [
    "EpochSynthesis",
    "ExactNullspace",
    "Match",
    "NoiseSynthesis",
    "Refinement",
    "Synthesis",
    "computes_as_eval",
    "embedding_rms",
    "influence",
    "match_influence",
    "scaled",
]
