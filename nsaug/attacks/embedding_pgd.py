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
            labels: class indices (B,), or class probabilities (B, C).
            rms: rms(u), a scalar.
            generator: source of the random start.
        """
        radius = self.radius(model, rms)
        noise = self.random_init(model, images, radius, generator)
        objective = cross_entropy(lambda values: model(images, values, self.layer), labels)
        for _ in range(self.num_steps):
            noise = self.step(noise, gradient(objective, noise), radius)
        return noise.detach()

    def radius(self, model: NoisyViT, rms: Tensor) -> Tensor:
        """L2 norm of the largest noise of an image, a scalar."""
        return self.eps * rms * model.noise_shape(self.layer).numel() ** 0.5

    def random_init(self, model: NoisyViT, images: Tensor, radius: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Noise on the sphere, uniform in direction."""
        noise = normal((len(images), *model.noise_shape(self.layer)), generator, images)
        return radius * noise / _norm(noise)

    def step(self, noise: Tensor, gradient: Tensor, radius: Tensor) -> Tensor:
        """One step along the gradient, projected into the ball."""
        noise = noise + 2.5 * radius / self.num_steps * gradient / _norm(gradient)
        return noise * (radius / _norm(noise)).clamp(max=1)


def _norm(noise: Tensor) -> Tensor:
    """L2 norm of the noise of every image, (B, 1, ...)."""
    return noise.flatten(1).norm(dim=1).clamp_min(MIN_NORM).view(-1, *[1] * (noise.dim() - 1))
