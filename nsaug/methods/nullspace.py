"""Nullspace augmented finetuning (arXiv 2403.10476): cross-entropy with and without ε-approximate nullspace noise."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.method import Method
from nsaug.nullspace import NoiseSynthesis, Refinement, embedding_rms
from nsaug.settings import validated
from nsaug.vit import ViT


class Nullspace(Method):
    """CE(f(u), y) + CE(f(u + v), y), v refined anew for each batch until it moves the predictions by less than ε.

    Args:
        synthesis: how v is found.
        unreached: what becomes of an image whose noise did not get below ε: `keep` trains on it all the same, as the
            paper does; `drop` leaves its noisy term out.
    """

    name = "nullspace"
    rms: Tensor

    @validated
    def __init__(self, synthesis: NoiseSynthesis, unreached: Literal["keep", "drop"] = "keep") -> None:
        super().__init__()
        self.synthesis = synthesis
        self.unreached = unreached
        # rms(u) of the first batch: kept, so that a resumed run counts `limit` in the same unit. NaN: not measured.
        self.register_buffer("rms", torch.tensor(float("nan")))

    def prepare(self, vit: ViT, images: Tensor, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        if self.rms.isnan():
            self.rms.copy_(mean_over_ranks(embedding_rms(vit, images).square()).sqrt())

    def loss(
        self, vit: ViT, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clean_logits = vit(images)
        found = self.synthesis.refine(vit, images, generator, clean_logits=clean_logits, rms=self.rms)
        noisy_logits = vit(images, found.noise) if found.logits is None else found.logits
        noisy_losses = F.cross_entropy(noisy_logits, labels, reduction="none")
        if self.unreached == "drop":
            noisy_losses = noisy_losses * found.reached
        clean_loss, noisy_loss = F.cross_entropy(clean_logits, labels), noisy_losses.mean()
        top1 = (clean_logits.argmax(1) == labels).float().mean()
        values = {"top1": top1, "clean_loss": clean_loss.detach(), "noisy_loss": noisy_loss.detach()}
        return clean_loss + noisy_loss, values | described(found)


def described(found: Refinement) -> dict[str, Tensor]:
    """What a refinement did, as scalars to log."""
    return {
        "influence_before": found.influence_before.mean(),
        "influence": found.influence_after.mean(),
        "refinement_steps": found.influence_after.new_tensor(float(found.steps)),
        "noise_rms_before": found.norm_before.mean(),
        "noise_rms": found.norm_after.mean(),
        "reached": found.reached.float().mean(),
    }
