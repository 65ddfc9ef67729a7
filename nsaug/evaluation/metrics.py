"""What is said of each image, and the metrics that follow from it.

Everything that a metric needs of an image is kept, so that intervals, paired differences and calibration can be
computed from stored results without a model. Every metric takes weights of the images: a bootstrap asks for them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nsaug.nullspace.influence import full_precision

BINS = 15
"""Of equal width, for the expected calibration error (Guo et al., arXiv 1706.04599)."""


@dataclass(frozen=True)
class PerImageScores:
    """What a model said of n images, each an array of n.

    Where several classes are right for an image, they count as one: an answer is right where it is one of them, and
    their probabilities are added.

    Attributes:
        label: class index; the first of several.
        prediction: the likeliest class.
        confidence: its probability.
        top1, top5: whether the label is the likeliest class, is among the five likeliest.
        nll: negative log-likelihood of the label, in nats.
        brier: summed squared difference of the probabilities to the label's, in [0, 2].
        reached: of a benchmark with nullspace noise: whether the image's noise has an influence below ε (1 or 0); NaN
            for others.
    """

    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    converged: np.ndarray


FIELDS = tuple(PerImageScores.__dataclass_fields__)


@torch.no_grad()
def score_predictions(logits: Tensor, labels: Tensor, converged: Tensor | None = None) -> dict[str, Tensor]:
    """The fields of `Judged` for logits (B, C), labels (B,) and reached (B,), each a tensor (B,) on their device.

    Labels may be sets, (B, k) filled up with a number below 0.

    Raises:
        RuntimeError: a logit is not finite: such a model has no answer that could be right or wrong.
    """
    if not logits.isfinite().all():
        raise RuntimeError("the model's logits are not finite")
    log_probabilities = full_precision(logits).log_softmax(-1)
    right = torch.zeros_like(logits, dtype=torch.bool)
    sets = labels if labels.dim() == 2 else labels[:, None]
    right.scatter_(1, sets.where(sets >= 0, sets.amax(1, keepdim=True)), True)
    own = log_probabilities.masked_fill(~right, float("-inf")).logsumexp(-1)
    best, prediction = log_probabilities.max(-1)
    likeliest = log_probabilities.topk(min(5, logits.shape[1]), -1).indices
    others = log_probabilities.exp().masked_fill(right, 0)
    brier = others.square().sum(-1) + (1 - own.exp()).square()
    return {
        "label": labels if labels.dim() == 1 else right.int().argmax(1),
        "prediction": prediction,
        "confidence": best.exp(),
        "top1": right.gather(1, prediction[:, None])[:, 0],
        "top5": right.gather(1, likeliest).any(-1),
        "nll": -own,
        "brier": brier,
        "converged": torch.full_like(own, float("nan")) if converged is None else converged.to(own.dtype),
    }


def _mean_of(field: str) -> Callable[[PerImageScores, np.ndarray], np.ndarray]:
    return lambda judged, weights: weights @ getattr(judged, field).astype(weights.dtype)


def calibration_error(judged: PerImageScores, weights: np.ndarray) -> np.ndarray:
    """Mean over images of how far the accuracy in their confidence's bin lies from the mean confidence there (ECE)."""
    gaps = (judged.top1 - judged.confidence).astype(weights.dtype)
    place = bins(judged.confidence)
    apart = np.zeros(weights.shape[:-1], weights.dtype)
    for each in np.unique(place):
        inside = place == each
        apart += np.abs(weights[..., inside] @ gaps[inside])
    return apart


def bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence: ((b / BINS), (b + 1) / BINS]."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


METRICS: dict[str, Callable[[PerImageScores, np.ndarray], np.ndarray]] = {
    "top1": _mean_of("top1"),
    "top5": _mean_of("top5"),
    "nll": _mean_of("nll"),
    "ece": calibration_error,
    "brier": _mean_of("brier"),
}
"""From what was judged and weights (..., n) that sum to 1, to values (...)."""
