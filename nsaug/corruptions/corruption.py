"""A common corruption at one severity, computed on the fly."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from nsaug.corruptions import filters
from nsaug.corruptions.functional import CORRUPTIONS, Params
from nsaug.corruptions.severities import CIFAR, IMAGENET, MAX_CIFAR_SIZE
from nsaug.utils.types import Integer, validated_dataclass

CorruptionName = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
]  # fmt: skip


@validated_dataclass
class Corruption:
    """A corruption of ImageNet-C or CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261).

    A pure function of image, severity and random parameters: an image's result does not depend on its batch. Results
    have 8 bits, as in the stored data sets.
    """

    name: CorruptionName
    severity: Annotated[Integer, Field(ge=1, le=5)] = 1

    def make_params(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        """Sample the random parameters of one image of shape (3, H, W), on the CPU."""
        size = (shape[-2], shape[-1])
        return CORRUPTIONS[self.name].make_params(self._constants(size), size, generator)

    def __call__(self, images: Tensor, params: list[Params]) -> Tensor:
        """Corrupt images (B, 3, H, W) in [0, 1], given the random parameters of every image.

        Raises:
            UserError: frost, glass blur and spatter need `nsaug[corruptions]`.
        """
        constants = self._constants((images.shape[-2], images.shape[-1]))
        corrupted = CORRUPTIONS[self.name].apply(images, params, constants).clamp(0, 1)
        return filters.truncate_to_levels(corrupted) / 255

    def _constants(self, size: tuple[int, int]) -> Any:
        table = CIFAR if max(size) <= MAX_CIFAR_SIZE else IMAGENET
        return table[self.name][self.severity - 1]
