"""Objectives that untargeted attacks maximize, their gradient, and the choice among several attempts."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Callable[[Tensor], Tensor]
"""Maps images to a scalar: a sum over images, so that an image's gradient does not depend on the batch size."""
LossName = Literal["ce", "margin"]


def gradient(objective: Objective, images: Tensor) -> Tensor:
    """Gradient of an objective with respect to images, (B, 3, H, W); parameters' gradients are left alone."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(objective(images), images)[0]


def cross_entropy(model: Callable[[Tensor], Tensor], targets: Tensor) -> Objective:
    """Cross-entropy to labels (B,) or probabilities (B, C), summed over images."""
    return lambda images: F.cross_entropy(model(images), targets, reduction="sum")


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Largest wrong logit minus the true one, (B,); positive where the image is misclassified.

    The loss of Carlini and Wagner (arXiv 1608.04644). Its gradient does not vanish where the model is confident.

    Args:
        logits: (B, C).
        targets: class indices (B,), or probabilities (B, C), whose most likely class counts as the true one.
    """
    labels = as_labels(targets)[:, None]
    wrong = logits.scatter(1, labels, -torch.inf).amax(1)
    return wrong - logits.gather(1, labels)[:, 0]


def as_labels(targets: Tensor) -> Tensor:
    """Convert targets, class indices (B,) or probabilities (B, C), to class indices (B,)."""
    return targets if targets.dim() == 1 else targets.argmax(1)


def make_objective(loss: LossName, model: nn.Module, targets: Tensor) -> Objective:
    """Cross-entropy (`ce`) or margin (`margin`) of a model's logits, summed over images."""
    if loss == "ce":
        return cross_entropy(model, targets)
    return lambda images: margin(model(images), targets).sum()


@torch.no_grad()
def select_worst(model: nn.Module, targets: Tensor, attempts: list[Tensor]) -> Tensor:
    """For every image, select the attempt with the largest margin; `attempts` are batches (B, 3, H, W)."""
    if len(attempts) == 1:
        return attempts[0]
    margins = torch.stack([margin(model(attempt), targets) for attempt in attempts])
    images = torch.arange(len(targets), device=margins.device)
    return torch.stack(attempts)[margins.argmax(0), images]
