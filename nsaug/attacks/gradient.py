"""The gradient that untargeted attacks climb."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gradient(objective: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient of an objective to the images, (B, 3, H, W); the parameters' are neither made nor touched.

    Args:
        objective: from images to a scalar; a sum over them, so that no image's gradient depends on how many there are.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(objective(images), images)[0]


def cross_entropy(model: nn.Module, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """The commonest objective: the images' summed cross-entropy to (B,) labels or (B, C) probabilities."""
    return lambda images: F.cross_entropy(model(images), targets, reduction="sum")
