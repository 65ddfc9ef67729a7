"""Patch-Fool: everything into a few patches, chosen and lit up by attention (Fu et al., arXiv 2203.08392)."""

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


@validated_dataclass
class PatchFool:
    """Changes `patches` patches of each image as it likes; no other pixel changes.

    The patches are those that one layer attends to most. Adam climbs the cross-entropy together with the attention that
    all layers pay to them; where the two gradients point apart, the attention's loses what works against the other.
    For a ViT whose blocks hold timm's attention, as `nsaug.models.noisy_vit.NoisyViT` or timm's model.
    """

    patches: PositiveInt = 1
    """How many patches of each image are changed."""
    num_steps: NonNegativeInt = 250
    step_size: PositiveFloat = 0.05
    """Of Adam, in pixel units; it falls by a twentieth every ten steps. The paper's 0.2 is of normalised images."""
    layer: NonNegativeInt = 4
    """Whose attention chooses the patches, counted from 0; the last one where the model has fewer."""
    attention: NonNegativeFloat = 0.002
    """Weight of the attention's gradient."""
    decay: PositiveFraction = 0.95
    eps: PixelEps = 1.0
    """How far a pixel of these patches may move; 1 is as far as it likes."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; arguments as for `PGD`: `generator` draws what the patches start as.

        Raises:
            UserError: the model has no attention to read, or its tokens are not a grid of patches.
        """
        images, labels = images.detach(), as_labels(labels)
        with attention_maps(model) as maps:
            with torch.no_grad():
                model(images)
            mask, chosen = self._chosen(maps, images)
            low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
            start = uniform(tuple(images.shape), generator, images)
            attacked = torch.where(mask, low + (high - low) * start, images).requires_grad_()
            optimizer = torch.optim.Adam([attacked], lr=self.step_size)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, self.decay)
            objective = cross_entropy(model, labels)
            for _ in range(self.num_steps):
                maps.clear()
                with torch.enable_grad():
                    loss = objective(attacked)
                    paid = torch.stack([_paid(each).gather(1, chosen).log().sum() for each in maps]).sum()
                    grad = torch.autograd.grad(loss, attacked, retain_graph=True)[0]
                    lit = torch.autograd.grad(paid, attacked)[0]
                attacked.grad = -(grad + self.attention * _agreeing(lit, grad)) * mask
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    attacked.copy_(torch.where(mask, torch.clamp(attacked, low, high), images))
        return attacked.detach()

    def _chosen(self, maps: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of the chosen patches, (B, 1, H, W), and their tokens, (B, patches)."""
        if any(len({*each.shape[-2:], *maps[0].shape[-2:]}) > 1 or len(each) != len(images) for each in maps):
            raise UserError(
                "Patch-Fool takes a model whose tokens are the same in all blocks, such as a plain ViT or DeiT"
            )
        paid = _paid(maps[min(self.layer, len(maps) - 1)])
        side = int(len(paid[0]) ** 0.5)  # class and register tokens are fewer than a row of patches
        prefix = len(paid[0]) - side * side
        height, width = images.shape[-2:]
        if height % side or width % side or self.patches > side * side:
            raise UserError(
                f"Patch-Fool takes a model whose tokens are a square grid of at least {self.patches} patches; here are"
                f" {len(paid[0])} tokens for {height} x {width} pixels"
            )
        chosen = paid[:, prefix:].topk(self.patches, 1).indices
        grid = torch.zeros(len(images), side * side, device=images.device).scatter(1, chosen, 1.0)
        mask = F.interpolate(grid.view(-1, 1, side, side), size=(height, width), mode="nearest") > 0
        return mask, chosen + prefix


def _paid(attention: Tensor) -> Tensor:
    """The attention that each token is paid, (B, N): (B, heads, N, N) averaged over heads and over who pays."""
    return attention.mean((1, 2)).clamp_min(1e-12)


def _agreeing(gradient: Tensor, main: Tensor) -> Tensor:
    """A gradient (B, ...) without what works against another, image by image (PCGrad, arXiv 2001.06782)."""
    flat, along = gradient.flatten(1), main.flatten(1)
    share = (flat * along).sum(1) / along.square().sum(1).clamp_min(torch.finfo(along.dtype).tiny)
    return (flat - share.clamp(max=0)[:, None] * along).view_as(gradient)


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects each forward's attention maps, (B, heads, N, N), layer by layer; afterwards the model is as it was.

    Fused attention computes none, so it is switched off, module by module: timm reads its global setting when a module
    is built.

    Raises:
        UserError: the model has no such attention.
    """
    layers: list[Any] = [part for part in model.modules() if hasattr(part, "fused_attn") and hasattr(part, "attn_drop")]
    if not layers:
        raise UserError(f"{type(model).__name__} has no attention of timm's to read: choose a plain ViT or DeiT")
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
        for layer, before in zip(layers, fused, strict=True):
            layer.fused_attn = before
        for handle in handles:
            handle.remove()
