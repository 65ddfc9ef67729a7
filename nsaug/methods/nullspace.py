"""Nullspace augmented finetuning (arXiv 2403.10476): cross-entropy with and without ε-approximate nullspace noise."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, kl_divergence, top1
from nsaug.methods.noise import NoiseMethod
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import Refinement, Synthesis
from nsaug.utils.types import NonNegativeFloat, PositiveFraction, validate_args


class Nullspace(NoiseMethod):
    """CE(f(u), y) + weight CE(f(u + v), y), v refined until it moves the predictions by less than ε.

    Args:
        synthesis: how v is found, anew for each batch or for each epoch.
        unreached: what becomes of an image whose noise did not get below ε: `keep` trains on it all the same, as the
            paper does; `drop` leaves its noisy terms out.
        weight: of the noisy term; 1 in the paper.
        consistency: weight of a third term, how far v moves the answer; 0 in the paper, whose code holds it too.
        consistency_of: that distance: `logits`, ||f(u + v) - f(u)||² (the authors'), or `kl`, KL(f(u) || f(u + v)) of
            the probabilities.
        share: of each batch's images that gets noise; the clean term is of all of them.
    """

    name = "nullspace"

    @validate_args
    def __init__(
        self,
        synthesis: Synthesis,
        unreached: Literal["keep", "drop"] = "keep",
        consistency: NonNegativeFloat = 0.0,
        consistency_of: Literal["logits", "kl"] = "logits",
        share: PositiveFraction = 1.0,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(synthesis, share, weight)
        self.unreached = unreached
        self.consistency = consistency
        self.consistency_of = consistency_of
        self.cost = synthesis.cost(share)

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        clean_logits = vit(images)
        clean_loss, values = F.cross_entropy(clean_logits, targets), {"top1": top1(clean_logits, targets)}
        images, targets, clean_logits = (self.noised(each) for each in (images, targets, clean_logits))
        found = self.refine(vit, images, clean_logits, generator)
        noisy_logits = vit(images, found.noise, self.synthesis.layer) if found.logits is None else found.logits
        class_subset = found.converged if self.unreached == "drop" else torch.ones_like(found.converged)
        noisy_loss = (F.cross_entropy(noisy_logits, targets, reduction="none") * class_subset).mean()
        loss = clean_loss + self.weight * noisy_loss
        values |= {"clean_loss": clean_loss.detach(), "noisy_loss": noisy_loss.detach()} | described(found)
        if self.consistency:
            if self.consistency_of == "kl":
                apart = kl_divergence(noisy_logits, clean_logits.log_softmax(-1))
            else:
                apart = (noisy_logits - clean_logits).square().sum(-1)
            inconsistency = (apart * class_subset).mean()
            loss = loss + self.consistency * inconsistency
            values["inconsistency"] = inconsistency.detach()
        return loss, values


def described(found: Refinement) -> dict[str, Tensor]:
    """What a refinement did, as scalars to log."""
    return {
        "influence_before": found.influence_before.mean(),
        "influence": found.influence_after.mean(),
        "refinement_steps": found.influence_after.new_tensor(float(found.steps)),
        "noise_rms_before": found.norm_before.mean(),
        "noise_rms": found.norm_after.mean(),
        "converged": found.converged.float().mean(),
    }
