"""Projected gradient descent in the L2 ball (Madry et al., arXiv 1706.06083)."""

from torch import Tensor

from nsaug.attacks.objectives import Objective, gradient
from nsaug.attacks.pgd import PGDBase
from nsaug.utils.rng import GeneratorLike, normal, uniform
from nsaug.utils.types import NonNegativeFloat, validated_dataclass

MIN_NORM = 1e-12
"""Lower bound on norms in divisions."""


@validated_dataclass
class PGDL2(PGDBase):
    """Steps of fixed length along the gradient, projected into the L2 ball and [0, 1]."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units."""
    step_size: NonNegativeFloat | None = None
    """In pixel units; None: 2.5 * eps / num_steps."""

    def random_init(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        direction = _normalize(normal(images.shape, generator, images))
        radius = uniform((len(images), 1, 1, 1), generator, images) ** (1 / images[0].numel())
        return (images + self.eps * radius * direction).clamp(0, 1)

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        step_size = 2.5 * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        attacked = start.detach()
        for _ in range(self.num_steps):
            delta = attacked + step_size * _normalize(gradient(objective, attacked)) - images
            delta = delta * (self.eps / _norm(delta)).clamp(max=1)
            attacked = (images + delta).clamp(0, 1)
        return attacked.detach()


def _norm(images: Tensor) -> Tensor:
    """L2 norm of every image, (B, 1, 1, 1)."""
    return images.flatten(1).norm(dim=1).clamp_min(MIN_NORM).view(-1, 1, 1, 1)


def _normalize(images: Tensor) -> Tensor:
    return images / _norm(images)
