"""Intervals against scipy, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from nsaug.evaluation.metrics import PerImageScores, calibration_error
from nsaug.evaluation.statistics import basic_bootstrap_interval, bootstrap_mean, bootstrap_weights, t_interval


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).random(400) < 0.7
    interval = bootstrap_mean(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2))
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.006)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.006)


def test_t_interval_agrees_with_scipy():
    values = np.array([0.31, 0.35, 0.28, 0.4])
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    interval = t_interval(values)
    assert (interval.value, interval.low, interval.high) == pytest.approx((values.mean(), low, high))


def test_t_interval_of_one_seed_is_nan():
    interval = t_interval(np.array([0.4]))
    assert interval.value == 0.4
    assert np.isnan([interval.low, interval.high]).all()


def test_coverage_is_95_percent():
    rng = np.random.default_rng(0)
    over_seeds = [t_interval(rng.normal(0.5, 0.1, 4)) for _ in range(400)]
    over_images = [bootstrap_mean(rng.random(200) < 0.6) for _ in range(400)]
    assert 0.92 < np.mean([interval.low < 0.5 < interval.high for interval in over_seeds]) < 0.98
    assert 0.91 < np.mean([interval.low < 0.6 < interval.high for interval in over_images]) < 0.98


def test_bootstrap_weights_are_shared():
    weights = bootstrap_weights(30)
    assert weights is bootstrap_weights(30)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_basic_interval_contains_the_calibration_error():
    """A percentile interval would lie above the estimate: resampling adds upward bias."""
    rng, contained = np.random.default_rng(0), []
    for _ in range(40):
        confidence = rng.uniform(0.3, 1, 359)
        unused = {key: np.zeros(359) for key in ("label", "prediction", "top5", "nll", "brier", "converged")}
        scores = PerImageScores(confidence=confidence, top1=rng.random(359) < confidence, **unused)
        value = float(calibration_error(scores, np.full(359, 1 / 359)))
        interval = basic_bootstrap_interval(value, calibration_error(scores, bootstrap_weights(359)))
        assert 0 <= interval.low <= interval.high
        contained.append(interval.low <= value <= interval.high)
    assert np.mean(contained) > 0.6
