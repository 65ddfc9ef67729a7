"""The exact nullspace of the patch embedding."""

import copy
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from nsaug.evaluation.analyses.base import Analysis, AnalysisImages, to_uint8
from nsaug.evaluation.results import AnalysisResult, Measurement
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import ExactNullspace
from nsaug.nullspace.pixel_space import patch_convolution
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class NullspacePair(Analysis):
    """Two images that differ by a vector in the exact nullspace of the patch embedding, and so have equal logits.

    The second image is the one nearest to a target image. Metrics: `nullity` (dimension of the nullspace per patch)
    and, if it is positive, `pixels` (mean absolute difference between the pair's pixels), `logits` (largest difference
    between the pair's logits, in float64) and `targets` (largest difference between the image's and the target's).
    """

    num_images: Annotated[int, Field(ge=2)] = 2

    def cost(self, num_images: int) -> int:
        return 1

    def analyze(
        self, model: NoisyViT, images: AnalysisImages, seed: int, required: Mapping[str, AnalysisResult]
    ) -> AnalysisResult:
        ids = images.test_ids
        if patch_convolution(model) is None:
            return AnalysisResult([], ids)
        null = ExactNullspace(model)
        measurements = [Measurement("exact", None, "nullity", 0, float(null.dimension))]
        if null.dimension == 0:
            return AnalysisResult(measurements, ids)
        image, target = images.train[:1], images.test[:1]
        pair = null.nearest(image, target).to(model.mean.device)
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(torch.cat([image.double(), pair, target.double()]))
        metrics = {
            "pixels": (pair - image).abs().mean(),
            "logits": (logits[1] - logits[0]).abs().max(),
            "targets": (logits[2] - logits[0]).abs().max(),
        }
        measurements += [Measurement("exact", None, metric, 0, float(value)) for metric, value in metrics.items()]
        confidences, predictions = logits.softmax(-1).max(-1)
        titles = [
            f"{name}: class {int(prediction)}, {100 * float(confidence):.1f} %"
            for name, prediction, confidence in zip(("image", "pair", "target"), predictions, confidences, strict=True)
        ]
        shown = [to_uint8(batch[0]) for batch in (image, pair, target)]
        return AnalysisResult(measurements, ids, titles, shown)
