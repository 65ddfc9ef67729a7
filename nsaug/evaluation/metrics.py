"""Per-image scores and the metrics computed from them.

The cache keeps every score that a metric needs, so that intervals, paired differences and calibration can be computed
without the model. Every metric takes image weights, which the bootstrap uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nsaug.nullspace.influence import full_precision

NUM_BINS = 15
"""Bins of equal width for the expected calibration error (Guo et al., arXiv 1706.04599)."""


@dataclass(frozen=True)
class PerImageScores:
    """Scores of one model on n images, as arrays of length n.

    If several labels are correct for an image, they count as one class: a prediction is correct if it is any of them,
    and their probabilities are added.

    Attributes:
        label: class index; the first one if there are several.
        prediction: class with the highest probability.
        confidence: probability of the prediction.
        top1: whether the label is the prediction.
        top5: whether the label is among the five most probable classes.
        nll: negative log-likelihood of the label, in nats.
        brier: summed squared difference between the probabilities and the label, in [0, 2].
        extra: further metrics of a benchmark by name, (n,); their mean over images is reported.
        inputs: images as the model saw them, (n, 3, H, W); for the sample images of the report, not kept.
        notes: what readers of the results have to know.
    """

    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    @staticmethod
    def empty() -> "PerImageScores":
        """Scores of no image."""
        integers, floats, flags = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool)
        return PerImageScores(integers, integers, floats, flags, flags, floats, floats)

    @staticmethod
    def concatenate(parts: "Sequence[PerImageScores]") -> "PerImageScores":
        """Scores of all images; parts without `inputs` leave none."""
        first = parts[0]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS}
        extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in first.extra}
        images = [part.inputs for part in parts if part.inputs is not None]
        notes = dict.fromkeys(note for part in parts for note in part.notes)
        inputs = torch.cat(images) if len(images) == len(parts) else None
        return PerImageScores(**arrays, extra=extra, inputs=inputs, notes=tuple(notes))


FIELDS = ("label", "prediction", "confidence", "top1", "top5", "nll", "brier")
"""Arrays that every `PerImageScores` has."""


@torch.no_grad()
def score_logits(
    logits: Tensor,
    labels: Tensor,
    *,
    inputs: Tensor | None = None,
    extra: Mapping[str, Tensor] | None = None,
    notes: tuple[str, ...] = (),
) -> PerImageScores:
    """Score predictions.

    Args:
        logits: (B, C).
        labels: (B,), or sets (B, k) padded with negative numbers.
        inputs: the images as the model saw them, (B, 3, H, W), for sample images.
        extra: further metrics by name, (B,).
        notes: what readers of the results have to know.

    Raises:
        RuntimeError: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise RuntimeError("the model's logits are not finite")
    log_probs = full_precision(logits).log_softmax(-1)
    is_label = torch.zeros_like(logits, dtype=torch.bool)
    label_sets = labels if labels.dim() == 2 else labels[:, None]
    is_label.scatter_(1, label_sets.where(label_sets >= 0, label_sets.amax(1, keepdim=True)), True)
    label_log_prob = log_probs.masked_fill(~is_label, float("-inf")).logsumexp(-1)
    max_log_prob, prediction = log_probs.max(-1)
    top5 = log_probs.topk(min(5, logits.shape[1]), -1).indices
    other_probs = log_probs.exp().masked_fill(is_label, 0)
    brier = other_probs.square().sum(-1) + (1 - label_log_prob.exp()).square()
    scores = {
        "label": labels if labels.dim() == 1 else is_label.int().argmax(1),
        "prediction": prediction,
        "confidence": max_log_prob.exp(),
        "top1": is_label.gather(1, prediction[:, None])[:, 0],
        "top5": is_label.gather(1, top5).any(-1),
        "nll": -label_log_prob,
        "brier": brier,
    }
    arrays = {name: value.cpu().numpy() for name, value in scores.items()}
    extra_arrays = {name: value.cpu().numpy() for name, value in (extra or {}).items()}
    return PerImageScores(**arrays, extra=extra_arrays, inputs=inputs, notes=notes)


def _mean_of(field: str) -> Callable[[PerImageScores, np.ndarray], np.ndarray]:
    return lambda scores, weights: weights @ getattr(scores, field).astype(weights.dtype)


def calibration_error(scores: PerImageScores, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: mean gap between accuracy and confidence over bins of confidence."""
    gaps = (scores.top1 - scores.confidence).astype(weights.dtype)
    bin_index = assign_bins(scores.confidence)
    error = np.zeros(weights.shape[:-1], weights.dtype)
    for index in np.unique(bin_index):
        in_bin = bin_index == index
        error += np.abs(weights[..., in_bin] @ gaps[in_bin])
    return error


def assign_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin index of every confidence; bin b is ((b / NUM_BINS), (b + 1) / NUM_BINS]."""
    return np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def risk_coverage_area(scores: PerImageScores, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve (AURC): error among the most confident images, averaged over coverages.

    With images in order of falling confidence, AURC = sum over i of w_i * (sum over j <= i of w_j error_j) / (sum over
    j <= i of w_j); images of one confidence are accepted together (Geifman and El-Yaniv, arXiv 1805.08206).
    """
    order = np.argsort(-scores.confidence, kind="stable")
    errors = 1.0 - scores.top1[order]
    last_of_group = np.append(np.flatnonzero(np.diff(scores.confidence[order])), len(order) - 1)

    def area(image_weights: np.ndarray) -> float:
        sorted_weights = image_weights[order]
        coverage = sorted_weights.cumsum(dtype=np.float64)[last_of_group]
        error = (sorted_weights * errors).cumsum(dtype=np.float64)[last_of_group]
        risk = error / np.where(coverage > 0, coverage, 1)
        return float(np.diff(coverage, prepend=0.0) @ risk)

    return np.apply_along_axis(area, -1, weights)  # row by row: faster than all at once, and in little memory


METRICS: dict[str, Callable[[PerImageScores, np.ndarray], np.ndarray]] = {
    "top1": _mean_of("top1"),
    "top5": _mean_of("top5"),
    "nll": _mean_of("nll"),
    "ece": calibration_error,
    "brier": _mean_of("brier"),
    "aurc": risk_coverage_area,
}
"""Functions of scores and of weights (..., n) that sum to 1; they return (...)."""
