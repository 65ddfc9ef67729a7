"""The ablation of the nullspace: finetuning on noise that was not chosen, matched to the noise that was."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, top1
from nsaug.methods.noise import NoiseMethod
from nsaug.models.noisy_vit import NoisyViT, eval_mode
from nsaug.nullspace import Synthesis, computes_as_eval, influence, match_influence, scaled
from nsaug.utils.types import NonNegativeFloat, PositiveFraction, validate_args

SEARCH = 10
"""Forwards that matching the influence takes at most."""


class RandomNoise(NoiseMethod):
    """CE(f(u), y) + weight CE(f(u + v), y) for a random v of the synthesis's scope and initial distribution.

    Args:
        synthesis: the nullspace noise that v is compared with.
        match: `norm`: v has the norm of the nullspace noise that would have been found for this image (or batch), in a
            random direction. `influence`: v is scaled until its influence is ε. `start`: v is the noise that the
            synthesis starts from, unrefined; by far the cheapest.
        share: of each batch's images that gets noise.
        weight: of the noisy term.
    """

    @validate_args
    def __init__(
        self,
        synthesis: Synthesis,
        match: Literal["norm", "influence", "start"] = "norm",
        share: PositiveFraction = 1.0,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(synthesis, share, weight)
        self.match = match
        self.name = "random_noise" if match == "norm" else f"random_noise_{match}"
        matching = {"norm": synthesis.cost(share) + share / 3, "influence": 1 + share * (3 + SEARCH) / 3}
        self.cost = matching.get(match, 1 + share)

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        clean_logits = vit(images)
        clean_loss, accuracy = F.cross_entropy(clean_logits, targets), top1(clean_logits, targets)
        images, targets, clean_logits = (self.noised(each) for each in (images, targets, clean_logits))
        noise, values = self._matched(vit, images, clean_logits.detach(), generator)
        noisy_logits = vit(images, noise, self.synthesis.layer)
        noisy_loss = F.cross_entropy(noisy_logits, targets)
        values |= {
            "top1": accuracy,
            "clean_loss": clean_loss.detach(),
            "noisy_loss": noisy_loss.detach(),
            "noise_rms": noise.square().mean().sqrt(),
        }
        if computes_as_eval(vit):
            values["influence"] = influence(noisy_logits.detach(), clean_logits.detach()).mean()
        return clean_loss + self.weight * noisy_loss, values

    def _matched(
        self, vit: NoisyViT, images: Tensor, clean_logits: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noise = self.synthesis.start(vit, images, generator, self.rms)
        if self.match == "norm":
            found = self.refine(vit, images, clean_logits, generator)
            norm = noise.flatten(1).square().mean(1).sqrt()
            return scaled(noise, found.norm_after / norm), {}
        if self.match == "influence":
            as_eval = computes_as_eval(vit)
            with torch.no_grad(), eval_mode(vit):
                target = clean_logits if as_eval else vit(images)
                match = match_influence(
                    vit, images, noise, target, self.synthesis.eps, steps=SEARCH, layer=self.synthesis.layer
                )
            return scaled(noise, match.scale), {"matched": match.matched.float().mean()}
        return noise, {}
