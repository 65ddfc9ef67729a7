"""Noise that was learned on other models."""

from collections.abc import Mapping

import torch

from nsaug.evaluation.analyses.base import Analysis, AnalysisImages, mean_effects
from nsaug.evaluation.results import AnalysisResult, Measurement
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.nullspace.analysis import compute_outputs
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class NoiseTransfer(Analysis):
    """Noise learned on the other models: conditions `from NAME`, metrics as in `NoiseAnalysis`.

    Attributes:
        source: name of the `NoiseAnalysis` in the suite that provides the noises.
        layer: where the noises are added; the layer of that analysis.
    """

    source: str
    layer: str = PATCH_EMBED

    @property
    def requires(self) -> str:
        return self.source

    def cost(self, num_images: int) -> int:
        return num_images // 2  # for every noise of the other models, whose number is not known in advance

    def analyze(
        self, model: NoisyViT, images: AnalysisImages, seed: int, required: Mapping[str, AnalysisResult]
    ) -> AnalysisResult:
        clean = [compute_outputs(model, batch) for batch in images.test.split(images.batch_size)]
        shape = model.to_tokens(torch.zeros(1, *model.noise_shape(self.layer)), self.layer).shape[1:]
        measurements = []
        for name, result in required.items():
            if result.noises.shape[1:] != shape:
                continue  # another width or number of tokens: not transferable
            for index, noise in enumerate(torch.from_numpy(result.noises).to(images.test)):
                for metric, value in mean_effects(model, images.test, noise[None], clean, self.layer).items():
                    measurements.append(Measurement(f"from {name}", None, metric, index, value))
        return AnalysisResult(measurements, images.test_ids)
