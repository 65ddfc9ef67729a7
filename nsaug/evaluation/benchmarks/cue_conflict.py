"""Shape and texture decisions on cue-conflict stimuli."""

import torch

from nsaug.data.testsets.shape_texture import shape_texture_decisions, shape_texture_labels
from nsaug.evaluation.benchmarks.base import Batch, ImageBenchmark
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class ShapeBias(ImageBenchmark):
    """Decisions among 16 categories on images with the shape of one and the texture of another.

    Metrics `shape` and `texture`: whether the decision is the category of the shape, or of the texture (Geirhos et al.,
    arXiv 1811.12231). Data: `nsaug.data.CueConflict`.
    """

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        logits = model(batch.images)
        decisions = shape_texture_decisions(logits.softmax(1))
        categories = torch.tensor([shape_texture_labels(image_id) for image_id in batch.ids]).to(decisions)
        extra = {"shape": decisions == categories[:, 0], "texture": decisions == categories[:, 1]}
        return score_logits(logits, batch.labels, inputs=batch.images, extra=extra)
