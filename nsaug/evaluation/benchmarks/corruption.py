"""Images under a corruption that is generated on the fly."""

import zlib
from typing import Any

from nsaug.corruptions import Corruption
from nsaug.evaluation.benchmarks.base import Batch, ImageBenchmark
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class UnderCorruption(ImageBenchmark):
    """Predictions on corrupted images.

    Attributes:
        corruption: a corruption of `nsaug.corruptions`, or anything that has its two methods.
    """

    corruption: Any

    @property
    def condition(self) -> str:
        return "corrupted"

    @property
    def corruption_name(self) -> str | None:
        return str(self.corruption.name) if isinstance(self.corruption, Corruption) else None

    @property
    def notes(self) -> list[str]:
        return ["generated on the fly"]

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        key: tuple[int, ...] = (seed, 0)
        if isinstance(self.corruption, Corruption):  # corruptions and severities have independent draws
            key = (seed, zlib.crc32(self.corruption.name.encode()), self.corruption.severity)
        shape = tuple(batch.images.shape[1:])
        params = [self.corruption.make_params(shape, generator) for generator in batch.generators(*key)]
        inputs = self.corruption(batch.images, params)
        return score_logits(model(inputs), batch.labels, inputs=inputs)
