"""The interface of analyses, which measure properties of a model instead of scoring every image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nsaug.data import TestDataset
from nsaug.evaluation.results import AnalysisResult
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace.analysis import Outputs, compute_outputs, noise_effects
from nsaug.utils.types import to_plain, validated_dataclass

NOISE, CHANGE, RADIUS = 1, 2, 3
"""Streams of random numbers: the first part of a generator's key after the seed."""


@dataclass(frozen=True)
class AnalysisImages:
    """Images to analyze a model on, in random order: noise is learned on the first half, evaluated on the second.

    Attributes:
        images: (n, 3, H, W) in [0, 1], on the model's device, n >= 2.
        ids: their ids.
        batch_size: number of images per forward pass.
    """

    images: Tensor
    ids: list[str]
    batch_size: int

    @property
    def train(self) -> Tensor:
        return self.images[: len(self.images) // 2]

    @property
    def test(self) -> Tensor:
        return self.images[len(self.images) // 2 :]

    @property
    def test_ids(self) -> list[str]:
        return self.ids[len(self.images) // 2 :]


@validated_dataclass
class Analysis:
    """Measurements of one model on some of its test images. A subclass implements `analyze`.

    Attributes:
        num_images: maximum number of images, drawn with the seed.
    """

    num_images: Annotated[int, Field(ge=2)] = 500

    condition: ClassVar[str] = "analyzed"
    data: ClassVar[None] = None
    notes: ClassVar[Sequence[str]] = ()

    def analyze(
        self, model: NoisyViT, images: AnalysisImages, seed: int, required: Mapping[str, AnalysisResult]
    ) -> AnalysisResult:
        """Measure one model, which is in eval mode and fp32.

        Args:
            model: the model.
            images: the images.
            seed: seed of all noise.
            required: results of the analysis that `requires` names, on the other models, by their names.
        """
        raise NotImplementedError

    @property
    def requires(self) -> str | None:
        """Name of an analysis in the suite whose results on the other models are needed; None if none are."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that results depend on, defaults included, as plain values."""
        return to_plain(self)

    def class_subset(self, model_data: TestDataset) -> None:
        """Analyses use all classes."""

    def cost(self, num_images: int) -> int:
        """Approximate cost in forward passes of single images."""
        raise NotImplementedError

    def check(self, data: TestDataset) -> None:
        """Raise UserError if the analysis does not fit the images of `data`."""


def mean_effects(model: NoisyViT, images: Tensor, noise: Tensor, clean: list[Outputs], layer: str) -> dict[str, float]:
    """Mean effects of one noise over all images, given the outputs without noise batch by batch."""
    size = len(clean[0].logits)
    parts = [
        noise_effects(compute_outputs(model, batch, noise, layer), before)
        for batch, before in zip(images.split(size), clean, strict=True)
    ]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) in uint8."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
