"""The gradient that untargeted attacks climb."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross-entropy to the images, (B, 3, H, W); the parameters' are neither made nor touched.

    The cross-entropy is summed, so that no image's gradient depends on how many there are.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]
