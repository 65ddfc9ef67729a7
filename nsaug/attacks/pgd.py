"""Projected gradient descent in the L-inf ball (Madry et al., arXiv 1706.06083)."""

import torch
from torch import Tensor, nn

from nsaug.attacks.gradient import Loss, Objective, gradient, objective_of, worst_of
from nsaug.draws import Source, uniform
from nsaug.settings import Count, PixelSize, PositiveCount, settings


@settings
class Climb:
    """Steps uphill within a ball, from the image or from anywhere in it, once or several times.

    Subclasses say what the ball is: `eps`, `start`, `climb`.
    """

    num_steps: Count = 10
    random_start: bool = True
    """Start from a uniform draw from the ball instead of the image."""
    restarts: PositiveCount = 1
    """Attempts, each from a draw of its own; the worst for the model is kept."""
    loss: Loss = "ce"
    """What it climbs: cross-entropy, or the margin of the likeliest wrong class over the right one."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: Source = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1].

        Args:
            model: images in [0, 1] to logits.
            images: (B, 3, H, W) in [0, 1].
            labels: (B,) class indices, or (B, C) probabilities.
            generator: draws the random start; on the images' device, or one for each image.
        """
        objective = objective_of(self.loss, model, labels)
        attempts = []
        for _ in range(self.restarts if self.random_start else 1):
            start = self.start(images, generator) if self.random_start else images
            attempts.append(self.climb(objective, images, start))
        return worst_of(model, labels, attempts)

    def start(self, images: Tensor, generator: Source = None) -> Tensor:
        """A uniform draw from each image's ball, within [0, 1]."""
        raise NotImplementedError

    def climb(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        """The steps: images in the ball around `images`, uphill from `start`, for any summed objective of images."""
        raise NotImplementedError


@settings
class PGD(Climb):
    """Steps along the sign of the loss's gradient, each projected into the image's eps ball and [0, 1]."""

    eps: PixelSize = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    step_size: PixelSize | None = None
    """In pixel units; 2.5 * eps / num_steps where None, as Madry et al. chose it."""

    def start(self, images: Tensor, generator: Source = None) -> Tensor:
        draw = uniform(images.shape, generator, images)
        return (images + self.eps * (2 * draw - 1)).clamp(0, 1)

    def climb(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        step_size = 2.5 * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        attacked = start.detach()
        for _ in range(self.num_steps):
            attacked = attacked + step_size * gradient(objective, attacked).sign()
            attacked = torch.clamp(attacked, low, high)
        return attacked.detach()
