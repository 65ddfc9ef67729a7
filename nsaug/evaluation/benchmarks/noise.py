"""Images with nullspace noise that is computed for every image on the evaluated model."""

from nsaug.evaluation.benchmarks.base import Batch, ImageBenchmark
from nsaug.evaluation.metrics import PerImageScores, score_logits
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NullspaceNoise, synthesize
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.utils.types import validated_dataclass


@validated_dataclass
class UnderNoise(ImageBenchmark):
    """Predictions with ε-approximate nullspace noise on the embeddings.

    Metric `converged`: whether the influence of an image's noise is below ε.

    Attributes:
        noise: the synthesis, with scope per_image.
    """

    noise: NullspaceNoise

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise.scope != "per_image":
            raise ValueError("benchmarks use one noise per image: set scope to per_image")

    @property
    def condition(self) -> str:
        return "noised"

    @property
    def forwards_per_image(self) -> int:
        return 2 + 3 * self.noise.num_steps

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        rms = batch.constants.embedding_rms(self.noise.layer)
        result = synthesize(model, batch.images, self.noise, generator=batch.generators(seed), rms=rms)
        logits = model(batch.images, result.noise, self.noise.layer)
        pixels = to_pixels(model, result.noise) if batch.show else None  # expensive
        inputs = batch.images if pixels is None else batch.images + pixels
        return score_logits(logits, batch.labels, inputs=inputs, extra={"converged": result.converged})
