"""Influence: how much noise changes the predicted probabilities; the number that ε bounds."""

from torch import Tensor


def influence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Squared L2 distance between the predicted probabilities with and without noise (arXiv 2403.10476).

    Args:
        logits: (B, C), with noise.
        clean_logits: (B, C), without.

    Returns:
        (B,), float32 or wider, in [0, 2]: 0 if no probability changed, 2 if all of it moved from one class to another.
    """
    return probability_change(logits, clean_logits).square().sum(-1)


def probability_change(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """softmax(logits) - softmax(clean_logits), (B, C), in float32 or wider."""
    return full_precision(logits).softmax(-1) - full_precision(clean_logits).softmax(-1)


def full_precision(values: Tensor) -> Tensor:
    """Half precision widened to float32, since it cannot resolve ε, the square of a small change of probability."""
    return values if values.element_size() >= 4 else values.float()
