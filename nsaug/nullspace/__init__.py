"""The paper's idea, knowing nothing of training: noise on the patch embeddings that moves no prediction by much."""

from nsaug.nullspace.exact import ExactNullspace
from nsaug.nullspace.influence import influence
from nsaug.nullspace.matching import Match, match_influence, scaled
from nsaug.nullspace.synthesis import NoiseSynthesis, Refinement, computes_as_eval, embedding_rms

__all__ = [
    "ExactNullspace",
    "Match",
    "NoiseSynthesis",
    "Refinement",
    "computes_as_eval",
    "embedding_rms",
    "influence",
    "match_influence",
    "scaled",
]
