"""What all noise sources share: their interface, their result, and where noise starts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, matches_eval_mode
from nsaug.nullspace.influence import full_precision, influence
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike, uniform
from nsaug.utils.types import FiniteFloat

PIXEL_TOLERANCE = 1e-3
"""How far pixels may lie outside [0, 1]: mixing images in half precision does that."""

Eps = Annotated[FiniteFloat, Field(gt=0, lt=2)]
"""A bound of the influence, which lies in [0, 2]."""

ReduceMean = Callable[[Tensor], Tensor]
"""Averages a tensor over all ranks; every rank has to call it equally often."""
Batches = Callable[[int, int], Iterable[Tensor]]
"""A function (pass_number, count) that yields `count` batches of images, (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class NoiseResult:
    """Noise for a batch of B images and what it does to the predictions.

    Attributes:
        noise: (B, *model.noise_shape(layer)), or (1, ...) if the images share it; in the units of what it is added to.
        logits: (B, C), with noise, in the mode of the model; with a graph to its parameters if gradients are enabled.
        influence_before: (B,), of the noise that the source started from, in [0, 2].
        influence_after: (B,), of `noise`.
        converged: (B,), bool: whether what ε bounds is below it, the image's influence or, for shared noise, the mean.
    """

    noise: Tensor
    logits: Tensor
    influence_before: Tensor
    influence_after: Tensor
    converged: Tensor


@runtime_checkable
class NoiseSource(Protocol):
    """Where the noise that a method trains on comes from.

    Attributes:
        name: of the method that trains on it, in tables.
        eps: ε.
        layer: where the noise is added; see `NoisyViT.noise_shapes`.
        cost: of one call in plain training steps (a forward, a backward to activations and one to weights make one),
            without the backward of the loss.
        advice: what to change if the noise does not get below ε, as a clause for a warning.
    """

    @property
    def name(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def layer(self) -> str: ...
    @property
    def cost(self) -> float: ...
    @property
    def advice(self) -> str: ...

    def __call__(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        """Noise for a batch; leaves gradients, modes and running statistics of the model unchanged.

        Args:
            images: (B, 3, H, W) in [0, 1].
            targets: (B,) class indices or (B, C) probabilities, for sources that use labels.
            clean_logits: (B, C), the logits without noise, if the caller has them.
            generator: for all random draws; on the device of the images, or one generator per image.
        """
        ...


def start_noise(
    model: NoisyViT, like: Tensor, count: int, scale: float | Tensor, layer: str, generator: GeneratorLike
) -> Tensor:
    """`count` noises from U(-scale, scale), (count, *model.noise_shape(layer)), with the dtype of `like`."""
    return scale * (2 * uniform((count, *model.noise_shape(layer)), generator, like) - 1)


@torch.no_grad()
def embedding_rms(model: NoisyViT, images: Tensor, layer: str = PATCH_EMBED) -> Tensor:
    """rms(u): root mean square of what noise is added to, over these images; a scalar tensor."""
    with eval_mode(model):  # some patch embeddings contain batch norm
        return full_precision(model.activations(images, layer)).square().mean().sqrt()


def eval_logits(model: NoisyViT, images: Tensor, clean_logits: Tensor | None = None) -> Tensor:
    """The logits without noise in eval mode, (B, C), without a graph.

    Args:
        clean_logits: (B, C), in the mode that the model is in, if the caller has them: reused if that mode computes
            the same as eval mode.
    """
    if clean_logits is not None and matches_eval_mode(model):
        return clean_logits.detach()
    if clean_logits is None:
        check_images(images)
    with torch.no_grad(), eval_mode(model):
        return model(images)


def measure_noise(
    model: NoisyViT,
    images: Tensor,
    noise: Tensor,
    clean_logits: Tensor,
    eps: float,
    layer: str,
    influence_before: Tensor | None = None,
) -> NoiseResult:
    """The result for a noise that is final: its logits, its influence and whether it is below ε.

    Args:
        clean_logits: (B, C), those of `eval_logits`.
        influence_before: (B,), of the noise that a source started from; that of `noise` if None.

    The logits are computed in the mode of the model; if that differs from eval mode, the influence takes one more
    forward.
    """
    logits = measured = model(images, noise, layer)
    if not matches_eval_mode(model):
        with torch.no_grad(), eval_mode(model):
            measured = model(images, noise, layer)
    after = influence(measured.detach(), clean_logits)
    limited = after if len(noise) == len(images) else after.mean(0, keepdim=True)
    before = after if influence_before is None else influence_before
    return NoiseResult(noise, logits, before, after, (limited < eps).expand(len(images)))


def check_images(images: Tensor) -> None:
    """Raise UserError unless `images` is a batch (B, 3, H, W) with values in [0, 1]."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise UserError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W)")
    if len(images) == 0:
        raise UserError("the batch is empty: pass at least one image")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE):  # written so that NaN fails too
        raise UserError(f"images have values from {low:g} to {high:g}; expected [0, 1], not normalized")


def root_mean_square(noise: Tensor) -> Tensor:
    """Root mean square of each noise, (M,), for (M, ...)."""
    return noise.detach().flatten(1).square().mean(1).sqrt()


def scale_noise(noise: Tensor, scale: Tensor) -> Tensor:
    """Noise (M, ...) with each one multiplied by its scale, (M,)."""
    return noise * scale.view(-1, *[1] * (noise.dim() - 1))
