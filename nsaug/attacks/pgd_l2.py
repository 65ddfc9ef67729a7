"""Projected gradient descent in the L2 ball (Madry et al., arXiv 1706.06083)."""

from torch import Tensor

from nsaug.attacks.objectives import Objective, gradient
from nsaug.attacks.pgd import PGDBase
from nsaug.utils.rng import GeneratorLike, normal, uniform
from nsaug.utils.types import NonNegativeFloat, validated_dataclass

TINY = 1e-12
"""Below it a norm is taken for 0."""


@validated_dataclass
class PGDL2(PGDBase):
    """Steps of one length along the loss's gradient, each projected into the image's L2 ball and [0, 1]."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units."""
    step_size: NonNegativeFloat | None = None
    """In pixel units; 2.5 * eps / num_steps where None."""

    def start(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        direction = _unit(normal(images.shape, generator, images))
        share = uniform((len(images), 1, 1, 1), generator, images) ** (1 / images[0].numel())
        return (images + self.eps * share * direction).clamp(0, 1)

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        step_size = 2.5 * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        attacked = start.detach()
        for _ in range(self.num_steps):
            change = attacked + step_size * _unit(gradient(objective, attacked)) - images
            change = change * (self.eps / _norm(change)).clamp(max=1)
            attacked = (images + change).clamp(0, 1)
        return attacked.detach()


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).clamp_min(TINY).view(-1, 1, 1, 1)


def _unit(values: Tensor) -> Tensor:
    return values / _norm(values)
