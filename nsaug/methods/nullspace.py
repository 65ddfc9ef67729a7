"""Nullspace augmented finetuning (arXiv 2403.10476): cross-entropy with and without ε-approximate nullspace noise."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.method import Loss, top1
from nsaug.methods.noise import NoiseMethod
from nsaug.nullspace import NoiseSynthesis, Refinement
from nsaug.settings import validated
from nsaug.vit import ViT


class Nullspace(NoiseMethod):
    """CE(f(u), y) + CE(f(u + v), y), v refined anew for each batch until it moves the predictions by less than ε.

    Args:
        synthesis: how v is found.
        unreached: what becomes of an image whose noise did not get below ε: `keep` trains on it all the same, as the
            paper does; `drop` leaves its noisy term out.
    """

    name = "nullspace"

    @validated
    def __init__(self, synthesis: NoiseSynthesis, unreached: Literal["keep", "drop"] = "keep") -> None:
        super().__init__(synthesis)
        self.unreached = unreached
        self.cost = (6 + 2 * synthesis.steps) / 3

    def loss(self, vit: ViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> Loss:
        clean_logits = vit(images)
        found = self.synthesis.refine(vit, images, generator, clean_logits=clean_logits, rms=self.rms)
        noisy_logits = vit(images, found.noise) if found.logits is None else found.logits
        noisy_losses = F.cross_entropy(noisy_logits, targets, reduction="none")
        if self.unreached == "drop":
            noisy_losses = noisy_losses * found.reached
        clean_loss, noisy_loss = F.cross_entropy(clean_logits, targets), noisy_losses.mean()
        values = {"top1": top1(clean_logits, targets), "clean_loss": clean_loss.detach()}
        return clean_loss + noisy_loss, values | {"noisy_loss": noisy_loss.detach()} | described(found)


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
