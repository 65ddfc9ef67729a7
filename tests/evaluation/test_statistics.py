"""Intervals against scipy's, and against how often they hold what they should."""

import numpy as np
import pytest
from scipy import stats

from nsaug.evaluation.statistics import basic_over_images, mean_over_images, over_seeds, resampled_weights


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).random(400) < 0.7
    found = mean_over_images(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2))
    assert found.value == values.mean()
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)


def test_the_t_interval_agrees_with_scipy():
    values = np.array([0.31, 0.35, 0.28, 0.4])
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    found = over_seeds(values)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_one_seed_has_no_spread():
    found = over_seeds(np.array([0.4]))
    assert found.value == 0.4
    assert np.isnan([found.low, found.high]).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    seeds = [over_seeds(rng.normal(0.5, 0.1, 4)) for _ in range(400)]
    images = [mean_over_images(rng.random(200) < 0.6) for _ in range(400)]
    assert 0.92 < np.mean([each.low < 0.5 < each.high for each in seeds]) < 0.98
    assert 0.91 < np.mean([each.low < 0.6 < each.high for each in images]) < 0.98


def test_the_same_resamples_for_all():
    weights = resampled_weights(30)
    assert weights is resampled_weights(30)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_the_calibration_error_of_a_calibrated_model_lies_within_its_interval():
    """A percentile interval lies above the estimate itself: resampling adds its own upward bias."""
    from nsaug.evaluation.metrics import PerImageScores, calibration_error

    rng, held = np.random.default_rng(0), []
    for _ in range(40):
        confidence = rng.uniform(0.3, 1, 359)
        rest = {key: np.zeros(359) for key in ("label", "prediction", "top5", "nll", "brier", "converged")}
        judged = PerImageScores(confidence=confidence, top1=rng.random(359) < confidence, **rest)
        value = float(calibration_error(judged, np.full(359, 1 / 359)))
        found = basic_over_images(value, calibration_error(judged, resampled_weights(359)))
        assert 0 <= found.low <= found.high
        held.append(found.low <= value <= found.high)
    assert np.mean(held) > 0.6
