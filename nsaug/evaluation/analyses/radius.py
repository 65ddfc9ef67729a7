"""Largest norm of noise that a model tolerates."""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from nsaug.evaluation.analyses.base import RADIUS, Analysis, AnalysisImages
from nsaug.evaluation.results import AnalysisResult, Measurement
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace import embedding_rms
from nsaug.nullspace.analysis import nullspace_radius
from nsaug.utils.rng import make_generator
from nsaug.utils.types import FiniteFloat, PositiveFloat, PositiveInt, UniqueTuple, validated_dataclass

Eps = Annotated[FiniteFloat, Field(gt=0, lt=2)]


@validated_dataclass
class NoiseRadius(Analysis):
    """Largest norm of noise whose influence is below ε, for learned noise and for scaled random noise.

    Conditions: `learned` and `random`, with ε as strength. Metrics: `radius` (root mean square of the noise) and
    `relative radius` (relative to that of the embeddings); see `nsaug.nullspace.analysis.nullspace_radius`.
    """

    eps: UniqueTuple[Eps] = (0.01, 0.03, 0.1)
    num_noises: PositiveInt = 5
    init_scales: UniqueTuple[PositiveFloat] = (0.5, 1, 2, 4, 8)
    num_updates: PositiveInt = 200
    layer: str = PATCH_EMBED

    def cost(self, num_images: int) -> int:
        half = num_images // 2
        learning = 4 * half * max(1, round(self.num_updates / math.ceil(half / 64))) * len(self.init_scales)
        return self.num_noises * (learning + 12 * half * (1 + len(self.init_scales)) * len(self.eps))

    def analyze(
        self, model: NoisyViT, images: AnalysisImages, seed: int, required: Mapping[str, AnalysisResult]
    ) -> AnalysisResult:
        rms = float(embedding_rms(model, images.test[: images.batch_size], self.layer))
        measurements = []
        for index in range(self.num_noises):
            generator = make_generator(model.mean.device, seed, RADIUS, index)
            by_eps = nullspace_radius(
                model, images.train, images.test, self.eps, generator, self.init_scales, self.num_updates,
                layer=self.layer,
            )  # fmt: skip
            for radius in by_eps:
                for condition, value in (("learned", radius.learned), ("random", radius.random)):
                    measurements.append(Measurement(condition, radius.eps, "radius", index, value))
                    measurements.append(Measurement(condition, radius.eps, "relative radius", index, value / rms))
        return AnalysisResult(measurements, images.test_ids)
