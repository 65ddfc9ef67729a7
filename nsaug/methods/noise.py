"""What the methods share that add noise to the patch embeddings."""

from collections.abc import Callable

import torch
from torch import Tensor

from nsaug.methods.method import Method
from nsaug.nullspace import NoiseSynthesis, embedding_rms
from nsaug.vit import ViT


class NoiseMethod(Method):
    """Holds a synthesis and the unit it counts in.

    Args:
        synthesis: the noise's scope, start, and how it is refined.
    """

    rms: Tensor

    def __init__(self, synthesis: NoiseSynthesis) -> None:
        super().__init__()
        self.synthesis = synthesis
        # rms(u) of the first batch: kept, so that a resumed run counts `limit` in the same unit. NaN: not measured.
        self.register_buffer("rms", torch.tensor(float("nan")))

    def prepare(self, vit: ViT, images: Tensor, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        if self.rms.isnan():
            self.rms.copy_(mean_over_ranks(embedding_rms(vit, images).square()).sqrt())
