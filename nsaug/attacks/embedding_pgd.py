"""Projected gradient descent on the embeddings instead of the pixels."""

from torch import Tensor

from nsaug.attacks.objectives import cross_entropy, gradient
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT
from nsaug.utils.rng import GeneratorLike, normal
from nsaug.utils.types import NonNegativeFloat, PositiveInt, validated_dataclass

MIN_NORM = 1e-12
"""Lower bound on norms in divisions."""


@validated_dataclass
class EmbeddingPGD:
    """Noise on the embeddings in an L2 ball, which maximizes the cross-entropy; what nullspace noise is not.

    The ball of an image is that of all noise whose root mean square is at most `eps` times that of the embeddings, so
    that radii compare with `init_scale` of nullspace noise. The noise need not be reachable by any image.
    """

    eps: NonNegativeFloat = 0.1
    """Radius of the ball, in multiples of rms(u)."""
    num_steps: PositiveInt = 10
    """Gradient steps of length 2.5 * eps / num_steps."""
    layer: str = PATCH_EMBED

    def __call__(
        self, model: NoisyViT, images: Tensor, labels: Tensor, rms: Tensor, generator: GeneratorLike = None
    ) -> Tensor:
        """Return the noise, (B, *noise_shape(layer)), detached.

        Args:
            model: the model, in the mode in which it is attacked.
            images: (B, 3, H, W) in [0, 1].
            labels: class indices (B,).
            rms: rms(u), a scalar.
            generator: source of the random start, uniform in direction, on the sphere.
        """
        shape = len(images), *model.noise_shape(self.layer)
        noise = normal(shape, generator, images)
        radius = self.eps * float(rms) * noise[0].numel() ** 0.5
        noise = radius * noise / _norm(noise)
        objective = cross_entropy(lambda values: model(images, values, self.layer), labels)
        for _ in range(self.num_steps):
            ascent = gradient(objective, noise)
            noise = noise + 2.5 * radius / self.num_steps * ascent / _norm(ascent)
            noise = noise * (radius / _norm(noise)).clamp(max=1)
        return noise.detach()


def _norm(noise: Tensor) -> Tensor:
    """L2 norm of the noise of every image, (B, 1, ...)."""
    return noise.flatten(1).norm(dim=1).clamp_min(MIN_NORM).view(-1, *[1] * (noise.dim() - 1))
