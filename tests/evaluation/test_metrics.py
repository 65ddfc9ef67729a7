"""Metrics against torchmetrics, scikit-learn and their definitions."""

import numpy as np
import pytest
import torch
from scipy.special import digamma
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from nsaug.evaluation.metrics import METRICS, PerImageScores, assign_bins, risk_coverage_area, score_logits


@pytest.fixture
def predictions():
    rng = torch.Generator().manual_seed(0)
    return 3 * torch.randn(500, 10, generator=rng), torch.randint(10, (500,), generator=rng)


def compute_metrics(logits, labels, weights=None):
    scores = score_logits(logits, labels)
    weights = np.full(len(labels), 1 / len(labels)) if weights is None else weights
    return {name: float(metric(scores, weights)) for name, metric in METRICS.items()}


def test_metrics_agree_with_other_implementations(predictions):
    logits, labels = predictions
    values, probabilities = compute_metrics(logits, labels), logits.softmax(-1)
    top = {k: multiclass_accuracy(logits, labels, 10, average="micro", top_k=k).item() for k in (1, 5)}
    assert values["top1"] == pytest.approx(top[1])
    assert values["top5"] == pytest.approx(top[5])
    assert values["nll"] == pytest.approx(log_loss(labels, probabilities.double(), labels=range(10)), rel=1e-5)
    assert values["ece"] == pytest.approx(multiclass_calibration_error(logits, labels, 10, n_bins=15).item(), abs=1e-6)
    one_hot = torch.nn.functional.one_hot(labels, 10)
    assert values["brier"] == pytest.approx((probabilities - one_hot).square().sum(-1).mean().item(), rel=1e-5)


def test_weights_equal_repeated_images(predictions):
    logits, labels = predictions
    counts = np.random.default_rng(0).multinomial(500, np.full(500, 1 / 500))
    drawn = torch.from_numpy(np.repeat(np.arange(500), counts))
    weighted = compute_metrics(logits, labels, counts / 500)
    repeated = compute_metrics(logits[drawn], labels[drawn])
    assert weighted == pytest.approx(repeated, rel=1e-5)


def test_few_classes_and_half_precision():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    labels = torch.tensor([0, 1])
    assert compute_metrics(logits, labels)["top5"] == 1
    assert compute_metrics(logits.half(), labels) == pytest.approx(compute_metrics(logits, labels), rel=1e-3)


def test_bins_exclude_their_lower_edge():
    assert assign_bins(np.array([1 / 15, 1 / 15 + 1e-6, 1.0, 1e-9])).tolist() == [0, 1, 14, 0]


def test_risk_coverage_area():
    """Against a loop over thresholds in float64, with ties."""
    rng = np.random.default_rng(0)
    confidence = rng.integers(1, 12, 60) / 12
    correct = rng.random(60) < confidence
    unused = {key: np.zeros(60) for key in ("label", "prediction", "top5", "nll", "brier")}
    scores = PerImageScores(confidence=confidence, top1=correct, **unused)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=3) / 60
    areas = risk_coverage_area(scores, weights)
    for area, weight in zip(areas, weights, strict=True):
        expected = 0.0
        for i in range(60):
            accepted = confidence >= confidence[i]
            if weight[accepted].sum() > 0:
                expected += weight[i] * (weight[accepted] * ~correct[accepted]).sum() / weight[accepted].sum()
        assert area == pytest.approx(expected)
    perfect = PerImageScores(confidence=confidence, top1=np.ones(60, bool), **unused)
    assert risk_coverage_area(perfect, weights[0]) == 0


def test_risk_coverage_area_agrees_with_harmonic_weights():
    """Zhou et al., arXiv 2410.15361: the error at rank r from the most confident counts (H_n - H_(r-1)) / n."""
    rng, n = np.random.default_rng(0), 3000
    confidence, correct = rng.random(n), rng.random(n) < 0.7
    unused = {key: np.zeros(n) for key in ("label", "prediction", "top5", "nll", "brier")}
    scores = PerImageScores(confidence=confidence, top1=correct, **unused)
    rank = n - confidence.argsort().argsort()
    expected = ((digamma(n + 1) - digamma(rank)) * ~correct).mean()
    area = risk_coverage_area(scores, np.full(n, 1 / n, np.float32))
    assert area == pytest.approx(expected, rel=1e-6), "sums are in float64"


def test_risk_coverage_area_in_closed_form():
    uniform, unused = np.full(4, 1 / 4), {key: np.zeros(4) for key in ("label", "prediction", "top5", "nll", "brier")}

    def area(*confidence):
        top1 = np.array([True, True, True, False])
        return risk_coverage_area(PerImageScores(confidence=np.array(confidence), top1=top1, **unused), uniform)

    assert area(0.9, 0.8, 0.7, 0.6) == pytest.approx(1 / 16), "the error comes last"
    assert area(0.6, 0.7, 0.8, 0.9) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), "the error comes first"
    assert area(0.5, 0.5, 0.5, 0.5) == pytest.approx(1 / 4), "confidence without information"
