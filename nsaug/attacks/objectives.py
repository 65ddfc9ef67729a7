"""What untargeted attacks climb, and which of several results they keep."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Callable[[Tensor], Tensor]
"""From images to a scalar; a sum over them, so that no image's gradient depends on how many there are."""
LossName = Literal["ce", "margin"]


def gradient(objective: Objective, images: Tensor) -> Tensor:
    """Gradient of an objective to the images, (B, 3, H, W); the parameters' are neither made nor touched."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(objective(images), images)[0]


def cross_entropy(model: nn.Module, targets: Tensor) -> Objective:
    """The commonest objective: the images' summed cross-entropy to (B,) labels or (B, C) probabilities."""
    return lambda images: F.cross_entropy(model(images), targets, reduction="sum")


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the likeliest wrong class is above the right one, (B,): above 0 the image is misclassified.

    The loss of Carlini and Wagner (arXiv 1608.04644), which does not fade where a model is sure.

    Args:
        logits: (B, C).
        targets: (B,) class indices, or (B, C) probabilities, of which the likeliest class is the right one.
    """
    labels = as_labels(targets)[:, None]
    wrong = logits.scatter(1, labels, -torch.inf).amax(1)
    return wrong - logits.gather(1, labels)[:, 0]


def as_labels(targets: Tensor) -> Tensor:
    """Class indices, (B,), for such or for probabilities (B, C)."""
    return targets if targets.dim() == 1 else targets.argmax(1)


def make_objective(loss: LossName, model: nn.Module, targets: Tensor) -> Objective:
    """The summed cross-entropy (`ce`) or margin of a model's answers."""
    if loss == "ce":
        return cross_entropy(model, targets)
    return lambda images: margin(model(images), targets).sum()


@torch.no_grad()
def select_worst(model: nn.Module, targets: Tensor, attempts: list[Tensor]) -> Tensor:
    """Of each image's attempts, (B, 3, H, W) each, the one with the largest margin: one that fools, if any does."""
    if len(attempts) == 1:
        return attempts[0]
    margins = torch.stack([margin(model(attempt), targets) for attempt in attempts])
    images = torch.arange(len(targets), device=margins.device)
    return torch.stack(attempts)[margins.argmax(0), images]
