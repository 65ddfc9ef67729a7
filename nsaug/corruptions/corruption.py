"""One of the common corruptions at one severity, made on the fly for any images."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from nsaug.corruptions.functional import KINDS, Params
from nsaug.corruptions.severities import CIFAR, IMAGENET
from nsaug.utils.types import validated_dataclass

SMALL = 32
"""Images of at most that many pixels get CIFAR-10-C's constants."""

Name = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
]  # fmt: skip


@validated_dataclass
class Corruption:
    """A corruption of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), on the fly.

    A pure function of image, severity and draws: the result does not depend on batch size or order. As in the stored
    sets the result has 8 bits.
    """

    name: Name
    severity: Annotated[int, Field(ge=1, le=5)] = 1

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        """The numbers that one image of this shape (3, H, W) needs, on the CPU."""
        size = (shape[-2], shape[-1])
        return KINDS[self.name].draw(self._constants(size), size, generator)

    def __call__(self, images: Tensor, draws: list[Params]) -> Tensor:
        """Corrupted images, (B, 3, H, W) in [0, 1], from images (B, 3, H, W) in [0, 1] and each one's draws.

        Raises:
            UserError: frost, glass blur and spatter need the extra `corruptions`.
        """
        constants = self._constants((images.shape[-2], images.shape[-1]))
        corrupted = KINDS[self.name].apply(images, draws, constants).clamp(0, 1)
        # Cut, not rounded, as the stored sets were; a hair above, since float32 may fall just short of a whole level.
        return (corrupted * 255 + 1e-3).floor() / 255

    def _constants(self, size: tuple[int, int]) -> Any:
        table = CIFAR if max(size) <= SMALL else IMAGENET
        return table[self.name][self.severity - 1]
