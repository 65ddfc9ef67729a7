"""Projected gradient descent in the L-inf ball (Madry et al., arXiv 1706.06083)."""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import LossName, Objective, gradient, make_objective, select_worst
from nsaug.utils.rng import GeneratorLike, uniform
from nsaug.utils.types import NonNegativeInt, PixelEps, PositiveInt, validated_dataclass


@validated_dataclass
class PGDBase:
    """Projected gradient ascent in a ball around every image, with random start and restarts.

    Subclasses define the ball: `eps`, `random_init` and `ascend`.
    """

    num_steps: NonNegativeInt = 10
    random_start: bool = True
    """Start from a uniform sample of the ball instead of the image."""
    restarts: PositiveInt = 1
    """Number of random starts; for every image the attempt with the largest margin is returned."""
    loss: LossName = "ce"
    """Objective: cross-entropy, or the margin of the largest wrong logit over the true one."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`."""
        objective = make_objective(self.loss, model, labels)
        attempts = []
        for _ in range(self.restarts if self.random_start else 1):
            start = self.random_init(images, generator) if self.random_start else images
            attempts.append(self.ascend(objective, images, start))
        return select_worst(model, labels, attempts)

    def random_init(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Sample uniformly from the ball around every image, clipped to [0, 1]."""
        raise NotImplementedError

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        """Maximize an objective in the ball around `images` by `num_steps` projected steps from `start`."""
        raise NotImplementedError


@validated_dataclass
class PGD(PGDBase):
    """Steps along the sign of the gradient, projected into the L-inf ball and [0, 1]."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    step_size: PixelEps | None = None
    """In pixel units; None: 2.5 * eps / num_steps, as in the paper."""

    def random_init(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        noise = uniform(images.shape, generator, images)
        return (images + self.eps * (2 * noise - 1)).clamp(0, 1)

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        step_size = 2.5 * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        attacked = start.detach()
        for _ in range(self.num_steps):
            grad = gradient(objective, attacked)
            attacked = torch.clamp(attacked + step_size * grad.sign(), low, high)
        return attacked.detach()
