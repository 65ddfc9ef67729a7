"""Patch-Fool (Fu et al., arXiv 2203.08392): perturbs a few patches, guided by attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsaug.attacks.objectives import as_labels, cross_entropy
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike, uniform
from nsaug.utils.types import (
    NonNegativeFloat,
    NonNegativeInt,
    PixelEps,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    validated_dataclass,
)

MIN_ATTENTION = 1e-12
"""Lower bound on attention, whose logarithm is maximized."""


@validated_dataclass
class PatchFool:
    """Perturbs the `num_patches` patches that receive the most attention in one layer.

    Adam maximizes the cross-entropy and the attention that all layers pay to these patches. Where the two gradients
    conflict, the attention's is projected. The model is a plain ViT with timm's attention: a
    `nsaug.models.noisy_vit.NoisyViT` or timm's own.
    """

    num_patches: PositiveInt = 1
    """Number of perturbed patches per image."""
    num_steps: NonNegativeInt = 250
    step_size: PositiveFloat = 0.05
    """Initial learning rate of Adam, in pixel units; the paper's 0.2 is for normalized images."""
    attn_layer: NonNegativeInt = 4
    """Layer that selects the patches, counted from 0; the last one if the model has fewer."""
    attn_weight: NonNegativeFloat = 0.002
    """Weight of the attention's gradient."""
    decay: PositiveFraction = 0.95
    """Factor on the learning rate every ten steps."""
    eps: PixelEps = 1.0
    """Largest change of a pixel in the selected patches; 1 leaves it unbounded."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`.

        Raises:
            UserError: the model has no readable attention, or its tokens are not a square grid of patches.
        """
        images, labels = images.detach(), as_labels(labels)
        with attention_maps(model) as maps:
            with torch.no_grad():
                model(images)
            mask, tokens = self._select_patches(maps, images)
            low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
            noise = uniform(tuple(images.shape), generator, images)
            attacked = torch.where(mask, low + (high - low) * noise, images).requires_grad_()
            optimizer = torch.optim.Adam([attacked], lr=self.step_size)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, self.decay)
            objective = cross_entropy(model, labels)
            for _ in range(self.num_steps):
                maps.clear()
                with torch.enable_grad():
                    loss = objective(attacked)
                    attention = torch.stack([attention_received(layer).gather(1, tokens).log().sum() for layer in maps])
                    grad = torch.autograd.grad(loss, attacked, retain_graph=True)[0]
                    attn_grad = torch.autograd.grad(attention.sum(), attacked)[0]
                attacked.grad = -(grad + self.attn_weight * project_conflicting(attn_grad, grad)) * mask
                optimizer.step()
                scheduler.step()
                with torch.no_grad():
                    attacked.copy_(torch.where(mask, torch.clamp(attacked, low, high), images))
        return attacked.detach()

    def _select_patches(self, maps: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """Select patches by attention: their pixels, (B, 1, H, W), and token indices, (B, num_patches)."""
        num_tokens = maps[0].shape[-1]
        if any(layer.shape[-2:] != (num_tokens, num_tokens) or len(layer) != len(images) for layer in maps):
            raise UserError("Patch-Fool needs a model with the same tokens in all blocks: choose a plain ViT or DeiT")
        side = int(num_tokens**0.5)  # there are fewer class and register tokens than patches in a row
        num_prefix_tokens = num_tokens - side * side
        height, width = images.shape[-2:]
        if height % side or width % side or self.num_patches > side * side:
            raise UserError(
                f"Patch-Fool needs a square grid of at least {self.num_patches} patches, but the model has"
                f" {num_tokens} tokens for {height} x {width} pixels: choose another model or lower num_patches"
            )
        received = attention_received(maps[min(self.attn_layer, len(maps) - 1)])
        patches = received[:, num_prefix_tokens:].topk(self.num_patches, 1).indices
        grid = torch.zeros(len(images), side * side, device=images.device).scatter(1, patches, 1.0)
        mask = F.interpolate(grid.view(-1, 1, side, side), size=(height, width), mode="nearest") > 0
        return mask, patches + num_prefix_tokens


def attention_received(attention: Tensor) -> Tensor:
    """Mean attention that every token receives, (B, N), from attention maps (B, heads, N, N)."""
    return attention.mean((1, 2)).clamp_min(MIN_ATTENTION)


def project_conflicting(grad: Tensor, main: Tensor) -> Tensor:
    """Remove from every image's gradient the component opposed to `main` (PCGrad, arXiv 2001.06782)."""
    flat, flat_main = grad.flatten(1), main.flatten(1)
    squared_norm = flat_main.square().sum(1).clamp_min(torch.finfo(main.dtype).tiny)
    coefficient = (flat * flat_main).sum(1) / squared_norm
    return (flat - coefficient.clamp(max=0)[:, None] * flat_main).view_as(grad)


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention maps of every forward, one (B, heads, N, N) per layer; restores the model on exit.

    Fused kernels return no attention maps and are disabled per module: timm reads its global setting only when a
    module is built.

    Raises:
        UserError: the model has no attention of timm's.
    """
    layers: list[Any] = [part for part in model.modules() if hasattr(part, "fused_attn") and hasattr(part, "attn_drop")]
    if not layers:
        raise UserError(f"{type(model).__name__} has no attention that can be read: choose a plain ViT or DeiT of timm")
    maps: list[Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    handles = [
        layer.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0])) for layer in layers
    ]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield maps
    finally:
        for layer, was_fused in zip(layers, fused, strict=True):
            layer.fused_attn = was_fused
        for handle in handles:
            handle.remove()
