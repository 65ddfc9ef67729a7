"""Gaussian noise, the first corruption of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nsaug.utils.types import NonNegativeFloat, validated_dataclass


@validated_dataclass
class GaussianNoise:
    """Adds independent normal noise to every channel of every pixel."""

    std: NonNegativeFloat = 0.08
    """Standard deviation in pixel units; ImageNet-C's severities are 0.08, 0.12, 0.18, 0.26, 0.38."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The numbers that one image of this shape (3, H, W) needs, on the generator's device."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Corrupted images, (B, 3, H, W) in [0, 1], from images (B, 3, H, W) in [0, 1] and each one's draws."""
        return (images + self.std * torch.stack(list(draws)).to(images)).clamp(0, 1)
