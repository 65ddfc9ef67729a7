"""ε-approximate nullspace noise for one batch, by Newton's method towards a level set of the influence."""

from typing import Literal

import torch
from torch import Tensor

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, params_frozen
from nsaug.nullspace.influence import influence, probability_change
from nsaug.nullspace.noise import (
    Eps,
    NoiseResult,
    embedding_rms,
    eval_logits,
    measure_noise,
    scale_noise,
    start_noise,
)
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeInt, PositiveFloat, validated_dataclass

LEVEL = 0.6
"""Influence that the steps aim at, as a fraction of ε: a little inside, to allow for the error of linearization."""
MAX_STEP = 0.5
"""Largest norm of a step, as a fraction of the norm of the noise: farther away, the gradient says little."""


@validated_dataclass
class NullspaceNoise:
    """Settings of `synthesize`, and the noise source that calls it."""

    eps: Eps = 0.3
    """ε bounds the influence of each image or, with scope per_batch, the mean influence over the batch."""
    init_scale: PositiveFloat = 0.1
    """The noise starts from U(-init_scale, init_scale) in multiples of rms(u), u being what it is added to."""
    num_steps: NonNegativeInt = 3
    """K, the number of updates; 0 leaves the noise as it starts."""
    scope: Literal["per_image", "per_batch"] = "per_image"
    """A noise for each image, or one that the images of a batch share."""
    layer: str = PATCH_EMBED
    """Added to the output of the patch embedding, or to the input of a block (`blocks.3`)."""

    name = "nullspace"
    advice = "raise nullspace.num_steps, lower nullspace.init_scale, or raise nullspace.eps"

    @property
    def cost(self) -> float:
        return (1 + 2 * self.num_steps) / 3

    def start(
        self, model: NoisyViT, images: Tensor, generator: GeneratorLike = None, rms: Tensor | None = None
    ) -> Tensor:
        """The noise before the first update, (B or 1, *model.noise_shape(layer)); rms(u) of these images if None."""
        count = len(images) if self.scope == "per_image" else 1
        rms = embedding_rms(model, images, self.layer) if rms is None else rms
        return start_noise(model, images, count, self.init_scale * rms, self.layer, generator)

    def __call__(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        return synthesize(model, images, self, clean_logits, generator)


def synthesize(
    model: NoisyViT,
    images: Tensor,
    config: NullspaceNoise | None = None,
    clean_logits: Tensor | None = None,
    generator: GeneratorLike = None,
    rms: Tensor | None = None,
) -> NoiseResult:
    """Move random noise to the boundary of the ε-approximate nullspace, from either side.

    With φ(v) = ||softmax f(u + v) - softmax f(u)||, the square root of the influence, every update is the smallest
    change of v after which log φ, linearized, is at the level set φ² = LEVEL ε, as in DeepFool. (In the logarithm,
    because φ grows almost exponentially while the model is confident: steps in φ itself overshoot.) Noise that is still
    above ε before the last update is also shrunk by it. Always K updates: K + 1 forwards and K backwards to the noise
    alone, without waiting for the device. A training step costs (6 + 2 K) / 3 plain ones, counting a forward, a
    backward to activations and a backward to weights as 1 each.

    Args:
        model: in any mode; noise is synthesized in eval mode, gradients and running statistics stay unchanged.
        images: (B, 3, H, W) in [0, 1].
        config: the settings; the defaults of `NullspaceNoise` if None.
        clean_logits: (B, C), the logits without noise, if the caller has them: saves a forward.
        generator: draws the start; on the device of the images, or one generator per image.
        rms: rms(u), the unit of `init_scale`, to make the start independent of these images; a scalar.

    Returns:
        Noise for each image, (B, ...), or (1, ...) with scope per_batch. The logits come from the last forward and
        carry the graph that the loss needs.

    Raises:
        UserError: an unknown layer; without `clean_logits` also no images, or values outside [0, 1].
    """
    config = config or NullspaceNoise()
    clean_logits = eval_logits(model, images, clean_logits)
    noise = config.start(model, images, generator, rms)
    target = (LEVEL * config.eps) ** 0.5
    before = None
    with eval_mode(model), params_frozen(model):
        for step in range(config.num_steps):
            noise.requires_grad_()
            with torch.enable_grad():
                logits = model(images, noise, config.layer)
                phi = _distance(logits, clean_logits, shared=config.scope == "per_batch")
                # Not backward(): it would fill the gradients of the parameters, which the outer step accumulates into.
                (gradient,) = torch.autograd.grad(phi.sum(), noise)
            noise, phi = noise.detach(), phi.detach()
            before = influence(logits.detach(), clean_logits) if before is None else before
            noise = newton_step(noise, gradient, phi, target)
            if step == config.num_steps - 1:
                shrink = torch.where(phi.square() >= config.eps, target / phi, 1.0)
                noise = scale_noise(noise, shrink.to(noise.dtype))
    return measure_noise(model, images, noise, clean_logits, config.eps, config.layer, before)


def newton_step(noise: Tensor, gradient: Tensor, phi: Tensor, target: float | Tensor) -> Tensor:
    """One step of Newton's method for log φ(v) = log target, for each noise v: v - φ log(φ / target) ∇φ / ||∇φ||².

    Args:
        noise: (M, ...).
        gradient: (M, ...), of each φ to its noise.
        phi: (M,).
        target: a number, or (M,).

    Returns:
        (M, ...). A change of more than MAX_STEP times the norm of the noise is cut to that; noise without a gradient
        stays as it is.
    """
    slope = gradient.flatten(1).norm(dim=1)
    largest = MAX_STEP * noise.flatten(1).norm(dim=1)
    phi = phi.clamp_min(torch.finfo(phi.dtype).tiny)
    length = (phi * (phi / target).log() / slope).clamp(-largest, largest)
    return noise - scale_noise(gradient, torch.where(slope > 0, length / slope, 0.0).to(noise.dtype))


def _distance(logits: Tensor, clean_logits: Tensor, shared: bool) -> Tensor:
    """φ of each noise: (B,), or (1,) for the root of the mean influence."""
    # norm() rather than the square root of the influence: its gradient at 0 is 0, not NaN.
    change = probability_change(logits, clean_logits)
    return change.flatten().norm()[None] / len(change) ** 0.5 if shared else change.norm(dim=-1)
