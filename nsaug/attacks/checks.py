"""Whether an attack can be trusted on a model: what may hide its weakness without making it robust.

After the checks of AutoAttack (Croce and Hein, arXiv 2003.01690) and the signs of masked gradients (Athalye et al.,
arXiv 1802.00420).
"""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient

SAME = 1e-4
"""Logits that differ by less, as a share of their norm, are the same: some kernels do not add in one order."""
MASKED = 0.1
"""Share of the images without any gradient above which gradients are held to be masked."""


def attack_warnings(model: nn.Module, images: Tensor, labels: Tensor) -> list[str]:
    """Why gradient attacks may find less than there is; empty where nothing speaks against them.

    Args:
        model: images in [0, 1] to logits, in the mode in which it is attacked.
        images, labels: some that it gets right and wrong, (B, 3, H, W) and (B,).
    """
    found = []
    with torch.no_grad():
        first, second = model(images), model(images)
    if ((first - second).norm(dim=1) > SAME * first.norm(dim=1)).any():
        found.append("it answers differently each time: an attack climbs one answer and is judged by another")
    still = gradient(cross_entropy(model, labels), images).flatten(1).abs().amax(1) == 0
    if still.double().mean() > MASKED:
        found.append(f"the loss has no gradient at {int(still.sum())} of {len(still)} images: try loss=margin")
    return found
