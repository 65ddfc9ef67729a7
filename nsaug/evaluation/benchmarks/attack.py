"""Images under an adversarial attack."""

from typing import Any

from nsaug.data import TestDataset
from nsaug.evaluation.benchmarks.base import Batch, ImageBenchmark
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class UnderAttack(ImageBenchmark):
    """Predictions on adversarial images.

    Attributes:
        attack: an attack of `nsaug.attacks`, or anything that satisfies its protocol.
        transfer: make the images on the other models (black-box) instead of the evaluated one.
    """

    attack: Any
    transfer: bool = False

    @property
    def condition(self) -> str:
        return "attacked"

    @property
    def forwards_per_image(self) -> int:
        return 1 + 3 * getattr(self.attack, "num_steps", 1) * getattr(self.attack, "restarts", 1)

    def check(self, data: TestDataset) -> None:
        if data.images.has_label_sets:
            raise UserError("attacks need one label per image, this data set has sets of labels")

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        inputs = self.attack(batch.source or model, batch.images, batch.labels, batch.generators(seed))
        if not 0 <= float(inputs.min()) <= float(inputs.max()) <= 1:  # also catches NaN
            raise RuntimeError(f"{type(self.attack).__name__} returned images outside [0, 1], or not finite")
        return score_logits(model(inputs), batch.labels, inputs=inputs, notes=self._warnings(batch))

    def _warnings(self, batch: Batch) -> tuple[str, ...]:
        name = type(self.attack).__name__
        warnings = batch.constants.attack_warnings
        return tuple(f"{name} may overestimate this model's robustness: {warning}" for warning in warnings)
