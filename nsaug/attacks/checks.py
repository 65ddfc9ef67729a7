"""Check whether gradient attacks can be trusted on a model.

After the checks of AutoAttack (Croce and Hein, arXiv 2003.01690) and the signs of masked gradients of Athalye et al.
(arXiv 1802.00420).
"""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient

LOGIT_TOLERANCE = 1e-4
"""Largest difference between two forwards, relative to the logits' norm, that kernels with an unfixed summation order
may cause."""
MAX_ZERO_GRAD_FRACTION = 0.1
"""Fraction of images with zero gradient above which gradients count as masked."""


def attack_warnings(model: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    """Reasons why attacks may overestimate a model's robustness; empty if there are none.

    Args:
        model: maps images in [0, 1] to logits, in the mode in which it will be attacked.
        images: a sample of the evaluated images, (B, 3, H, W).
        labels: (B,).
    """
    warnings = []
    with torch.no_grad():
        first, second = model(images), model(images)
    if ((first - second).norm(dim=1) > LOGIT_TOLERANCE * first.norm(dim=1)).any():
        warnings.append("its logits change between two forwards, so gradients do not describe the evaluated prediction")
    no_grad = gradient(cross_entropy(model, labels), images).flatten(1).abs().amax(1) == 0
    if no_grad.double().mean() > MAX_ZERO_GRAD_FRACTION:
        warnings.append(f"the loss has no gradient at {int(no_grad.sum())} of {len(no_grad)} images: try loss=margin")
    return warnings
