"""Gaussian noise of any strength; at fixed severities, the first corruption of ImageNet-C (arXiv 1903.12261)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nsaug.utils.types import NonNegativeFloat, validated_dataclass


@validated_dataclass
class GaussianNoise:
    """Adds independent normal noise to every value of an image."""

    std: NonNegativeFloat = 0.08
    """Standard deviation in pixel units; ImageNet-C's severities are 0.08, 0.12, 0.18, 0.26, 0.38."""

    def make_params(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Sample the standard normal noise of one image of shape (3, H, W), on the generator's device."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Corrupt images (B, 3, H, W) in [0, 1], given the noise of every image."""
        return (images + self.std * torch.stack(list(params)).to(images)).clamp(0, 1)
