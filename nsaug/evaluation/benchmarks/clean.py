"""Images as they are: the model's own test images, or another data set's."""

from nsaug.data.testsets.stored_corruptions import StoredCorruption
from nsaug.evaluation.benchmarks.base import Batch, ImageBenchmark
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class Clean(ImageBenchmark):
    """Predictions on images as they are."""

    @property
    def condition(self) -> str:
        return "clean" if self.data is None else str(self.data.condition)

    @property
    def corruption_name(self) -> str | None:
        return str(self.data.corruption) if isinstance(self.data, StoredCorruption) else None

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        return score_logits(model(batch.images), batch.labels, inputs=batch.images)
