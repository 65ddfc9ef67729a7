"""How far a perturbation moves the predictions: the number that ε bounds."""

from torch import Tensor


def influence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Summed squared change of each image's predicted probabilities (the paper's ε-approximate nullspace).

    Args:
        logits: (B, C), the logits of the perturbed images.
        clean_logits: (B, C), those of the clean ones.

    Returns:
        (B,) in float32 or better, each in [0, 2]: 0 where the prediction did not move, 2 where all probability went
        from one class to another.
    """
    change = full_precision(logits).softmax(-1) - full_precision(clean_logits).softmax(-1)
    return change.square().sum(-1)


def full_precision(values: Tensor) -> Tensor:
    """Half precision widened to float32: it cannot resolve ε, the square of a small change of a probability."""
    return values if values.element_size() >= 4 else values.float()
