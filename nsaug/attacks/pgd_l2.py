"""Projected gradient descent in the L2 ball (Madry et al., arXiv 1706.06083)."""

from torch import Tensor, nn

from nsaug.attacks.gradient import Loss, Objective, gradient, objective_of, worst_of
from nsaug.draws import Source, normal, uniform
from nsaug.settings import Count, NonNegative, PositiveCount, settings

TINY = 1e-12
"""Below it a norm is taken for 0."""


@settings
class PGDL2:
    """Steps of one length along the loss's gradient, each projected into the image's L2 ball and [0, 1]."""

    eps: NonNegative = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units."""
    num_steps: Count = 10
    step_size: NonNegative | None = None
    """In pixel units; 2.5 * eps / num_steps where None."""
    random_start: bool = True
    """Start from a uniform draw from the ball instead of the image."""
    restarts: PositiveCount = 1
    """Attempts, each from a draw of its own; the worst for the model is kept."""
    loss: Loss = "ce"
    """What it climbs: cross-entropy, or the margin of the likeliest wrong class over the right one."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: Source = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; arguments as for `PGD`."""
        objective = objective_of(self.loss, model, labels)
        attempts = []
        for _ in range(self.restarts if self.random_start else 1):
            start = self.start(images, generator) if self.random_start else images
            attempts.append(self.climb(objective, images, start))
        return worst_of(model, labels, attempts)

    def start(self, images: Tensor, generator: Source = None) -> Tensor:
        """A uniform draw from each image's ball, within [0, 1]."""
        direction = _unit(normal(images.shape, generator, images))
        share = uniform((len(images), 1, 1, 1), generator, images) ** (1 / images[0].numel())
        return (images + self.eps * share * direction).clamp(0, 1)

    def climb(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        """The steps: images in the ball around `images`, uphill from `start`."""
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
