"""Random noise as a control for nullspace noise: as drawn, or of the same norm or influence in a random direction."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode
from nsaug.nullspace.influence import influence
from nsaug.nullspace.noise import Batches, NoiseResult, eval_logits, measure_noise, root_mean_square, scale_noise
from nsaug.nullspace.universal import UniversalNoise
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import validate_args

NUM_BISECTIONS = 10
"""Forwards that matching the influence takes in training."""
MAX_SCALE = 100.0
"""Noise that has not reached ε at this multiple of its start stays below: an untrained model hardly reacts at all."""


class RandomNoise(nn.Module):
    """Random noise beside a source of nullspace noise, with the same scope, layer and distribution of the start.

    Like the noise of its reference, it is drawn for every batch or, beside `UniversalNoise`, for every epoch.

    Args:
        reference: the source that the noise is compared with.
        match: `init`: the noise that the reference starts from, by far the cheapest; `norm`: scaled to the norm of the
            noise that the reference ends with; `influence`: scaled to an influence just below ε.

    Raises:
        UserError: the reference does not say what it starts from.
    """

    epoch_start: Tensor

    @validate_args
    def __init__(self, reference: Any, match: Literal["init", "norm", "influence"] = "norm") -> None:
        super().__init__()
        if not hasattr(reference, "start"):
            raise UserError(
                f"method=random_noise: {type(reference).__name__} has no method start(model, images, generator): choose"
                " nullspace=per_image, per_batch or universal, or add it"
            )
        self.reference = reference
        self.match = match
        self.name = "random_noise" if match == "norm" else f"random_noise_{match}"
        self.eps: float = reference.eps
        self.layer: str = reference.layer
        self.advice: str = reference.advice if match == "norm" else "lower nullspace.init_scale, or raise nullspace.eps"
        self.cost = 1 / 3 + {"init": 0.0, "norm": reference.cost, "influence": NUM_BISECTIONS / 3}[match]

    def setup(self, model: NoisyViT) -> None:
        if isinstance(self.reference, UniversalNoise):
            self.reference.setup(model)
            self.register_buffer("epoch_start", torch.zeros_like(self.reference.noise))

    def start_epoch(self, model: NoisyViT, batches: Batches, num_batches: int, generator: Any, reduce: Any) -> None:
        if isinstance(self.reference, UniversalNoise):
            if self.match == "norm":
                self.reference.start_epoch(model, batches, num_batches, generator, reduce)
            self.epoch_start.copy_(self.reference.start(model, self.epoch_start, generator))

    def forward(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        clean = eval_logits(model, images, clean_logits)
        shared = isinstance(self.reference, UniversalNoise)
        noise = self.epoch_start if shared else self.reference.start(model, images, generator)
        if self.match == "norm":
            with torch.no_grad():
                reference_noise = self.reference(model, images, targets, clean_logits, generator).noise
            noise = scale_noise(noise, root_mean_square(reference_noise) / root_mean_square(noise))
        elif self.match == "influence":
            with eval_mode(model):
                matched = match_influence(model, images, noise, clean, self.eps, NUM_BISECTIONS, self.layer)
            noise = scale_noise(noise, matched.scale)
        return measure_noise(model, images, noise, clean, self.eps, self.layer)


@dataclass(frozen=True)
class InfluenceMatch:
    """Scales of M noises.

    Attributes:
        scale: (M,), what to multiply each noise by.
        influence: (M,), at that scale; below ε.
    """

    scale: Tensor
    influence: Tensor


@torch.no_grad()
def match_influence(
    model: NoisyViT,
    images: Tensor,
    noise: Tensor,
    clean_logits: Tensor,
    eps: float,
    num_steps: int = 10,
    layer: str = PATCH_EMBED,
) -> InfluenceMatch:
    """Find the scale at which noise has an influence just below ε, by bisection on forwards alone.

    The scale grows or shrinks by 4 until ε is bracketed, then the bracket is halved on a logarithmic axis. The first
    guess takes the influence to grow with the square of the scale, as that of small noise does.

    Args:
        model: in a mode that computes the same as eval mode.
        images: (B, 3, H, W) in [0, 1].
        noise: (B, ...), one for each image, or (1, ...), for the mean influence over the batch.
        clean_logits: (B, C), without noise.
        eps: the influence to reach, in (0, 2].
        num_steps: forwards.
        layer: where the noise is added.

    Returns:
        The largest scale that was tried with an influence below ε, at most MAX_SCALE; 0 if there was none.
    """
    scale = torch.ones(len(noise), device=noise.device, dtype=noise.dtype)
    low, best = torch.zeros_like(scale), torch.zeros_like(scale)
    high = torch.full_like(scale, float("inf"))
    for step in range(num_steps):
        current = influence(model(images, scale_noise(noise, scale), layer), clean_logits).to(scale.dtype)
        current = current if len(noise) == len(images) else current.mean(0, keepdim=True)
        below = current < eps
        low, best = torch.where(below, scale, low), torch.where(below, current, best)
        high = torch.where(below, high, scale)
        if step == 0:
            guess = (0.9 * eps / current).sqrt()
            guess = torch.where(below, guess.clamp_min(1.05), guess)
        else:
            guess = torch.where(high.isinf(), 4 * low, torch.where(low == 0, high / 4, (low * high).sqrt()))
        scale = guess.clamp_max(MAX_SCALE)
    return InfluenceMatch(low, best)
