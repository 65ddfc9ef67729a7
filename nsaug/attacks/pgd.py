"""Projected gradient descent in the L-inf ball (Madry et al., arXiv 1706.06083)."""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import LossName, Objective, gradient, make_objective, select_worst
from nsaug.utils.rng import GeneratorLike, uniform
from nsaug.utils.types import NonNegativeInt, PixelEps, PositiveInt, validated_dataclass


@validated_dataclass
class PGDBase:
    """Steps uphill within a ball, from the image or from anywhere in it, once or several times.

    Subclasses say what the ball is: `eps`, `start`, `climb`.
    """

    num_steps: NonNegativeInt = 10
    random_start: bool = True
    """Start from a uniform draw from the ball instead of the image."""
    restarts: PositiveInt = 1
    """Attempts, each from a draw of its own; the worst for the model is kept."""
    loss: LossName = "ce"
    """What it climbs: cross-entropy, or the margin of the likeliest wrong class over the right one."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1].

        Args:
            model: images in [0, 1] to logits.
            images: (B, 3, H, W) in [0, 1].
            labels: (B,) class indices, or (B, C) probabilities.
            generator: draws the random start; on the images' device, or one for each image.
        """
        objective = make_objective(self.loss, model, labels)
        attempts = []
        for _ in range(self.restarts if self.random_start else 1):
            start = self.start(images, generator) if self.random_start else images
            attempts.append(self.ascend(objective, images, start))
        return select_worst(model, labels, attempts)

    def start(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        """A uniform draw from each image's ball, within [0, 1]."""
        raise NotImplementedError

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        """The steps: images in the ball around `images`, uphill from `start`, for any summed objective of images."""
        raise NotImplementedError


@validated_dataclass
class PGD(PGDBase):
    """Steps along the sign of the loss's gradient, each projected into the image's eps ball and [0, 1]."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    step_size: PixelEps | None = None
    """In pixel units; 2.5 * eps / num_steps where None, as Madry et al. chose it."""

    def start(self, images: Tensor, generator: GeneratorLike = None) -> Tensor:
        draw = uniform(images.shape, generator, images)
        return (images + self.eps * (2 * draw - 1)).clamp(0, 1)

    def ascend(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        step_size = 2.5 * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        attacked = start.detach()
        for _ in range(self.num_steps):
            attacked = attacked + step_size * gradient(objective, attacked).sign()
            attacked = torch.clamp(attacked, low, high)
        return attacked.detach()
