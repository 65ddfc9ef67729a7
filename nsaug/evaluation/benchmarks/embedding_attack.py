"""Images with adversarial noise on the embeddings."""

from nsaug.attacks import EmbeddingPGD
from nsaug.evaluation.benchmarks.attack import UnderAttack
from nsaug.evaluation.benchmarks.base import Batch
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class UnderEmbeddingAttack(UnderAttack):
    """Predictions with adversarial noise on the embeddings; the images themselves are unchanged."""

    attack: EmbeddingPGD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transfer:
            raise ValueError("noise on embeddings does not transfer to another model: remove transfer")

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        rms = batch.constants.embedding_rms(self.attack.layer)
        noise = self.attack(model, batch.images, batch.labels, rms, batch.generators(seed))
        logits = model(batch.images, noise, self.attack.layer)
        return score_logits(logits, batch.labels, inputs=batch.images, notes=self._warnings(batch))
