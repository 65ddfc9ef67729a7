"""Intervals against scipy, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from nsaug.evaluation.metrics import PerImageScores, calibration_error
from nsaug.evaluation.statistics import (
    basic_bootstrap_interval,
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_weights,
    expected_robustness,
    fraction_interval,
    frontier_area,
    positive_interval,
    proportion_interval,
    t_interval,
)


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


@pytest.mark.parametrize("values", [[0.4], [0.3, 0.5]])
def test_one_or_two_seeds_have_no_interval(values):
    for method in (t_interval, fraction_interval, positive_interval):
        interval = method(np.array(values))
        assert interval.value == pytest.approx(0.4)
        assert np.isnan([interval.low, interval.high]).all()


def test_equal_values_have_no_bootstrap_interval():
    equal = [bootstrap_mean(np.full(50, 0.3)), bootstrap_interval(0.0, np.zeros(1000))]
    for interval in [*equal, basic_bootstrap_interval(0.0, np.zeros(1000))]:
        assert np.isnan([interval.low, interval.high]).all()
    undefined = bootstrap_interval(0.5, np.append(np.linspace(0, 1, 999), np.nan))
    assert (undefined.low, undefined.high) == pytest.approx((0.025, 0.975)), "undefined resamples are left out"


def test_bootstrap_of_rare_successes_covers_too_little():
    """The reason for Wilson's interval: at 0.02 and 50 images, a third of all samples have no success."""
    rng = np.random.default_rng(0)
    samples = [rng.random(50) < 0.02 for _ in range(200)]
    intervals = {method: [method(sample) for sample in samples] for method in (bootstrap_mean, proportion_interval)}
    coverage = {key: np.mean([i.low < 0.02 < i.high for i in values]) for key, values in intervals.items()}
    assert coverage[bootstrap_mean] < 0.75
    assert coverage[proportion_interval] > 0.9


def test_proportions_at_the_edge():
    """Wilson's interval in closed form: z² / (n + z²) is the bound for 0 of n."""
    square = stats.norm.ppf(0.975) ** 2
    none, all_right = proportion_interval(np.zeros(8)), proportion_interval(np.ones(8))
    assert (none.low, none.high) == pytest.approx((0, square / (8 + square)), abs=1e-12)
    assert (all_right.low, all_right.high) == pytest.approx((8 / (8 + square), 1))


@pytest.mark.parametrize("count", [8, 50, 500])
@pytest.mark.parametrize("probability", [0.02, 0.3, 0.5, 0.98])
def test_coverage_of_proportions(count, probability):
    """Exact: the sum of the binomial probabilities of all counts whose interval contains the truth."""
    coverage = 0.0
    for correct in range(count + 1):
        interval = proportion_interval(np.arange(count) < correct)
        if interval.low <= probability <= interval.high:
            coverage += stats.binom.pmf(correct, count, probability)
    assert coverage > 0.83, "Wilson's interval is known to dip for small n near the edge"
    assert coverage > 0.93 or count < 500 or probability in (0.02, 0.98)


def test_fractions_stay_between_0_and_1():
    high, low, inside = np.array([0.98, 0.99, 1.0]), np.array([0.0, 0.0, 0.02]), np.array([0.5, 0.51, 0.52])
    assert t_interval(high).high > 1
    assert fraction_interval(high).high == 1
    assert t_interval(low).low < 0
    assert fraction_interval(low).low == 0
    assert fraction_interval(inside) == t_interval(inside)


def test_intervals_of_positive_quantities_stay_positive():
    values = np.array([0.02, 0.1, 1.4])
    assert t_interval(values).low < 0
    interval = positive_interval(values)
    assert 0 < interval.low < interval.value < interval.high
    logarithms = t_interval(np.log(values))
    geometric_mean = stats.gmean(values)
    assert interval.high / interval.value == pytest.approx(np.exp(logarithms.high) / geometric_mean)
    assert positive_interval(np.array([0.0, 0.0, 1.0])).low == 0
    rng = np.random.default_rng(0)
    near = 5 + 0.01 * rng.standard_normal(10)
    plain, logarithmic = t_interval(near), positive_interval(near)
    assert (logarithmic.low, logarithmic.high) == pytest.approx((plain.low, plain.high), rel=1e-4)


def test_expected_robustness_is_the_mean_over_radii():
    correct = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_allclose(expected_robustness(correct), [1, 2 / 3, 1 / 3, 0])
    assert expected_robustness(correct).mean() == pytest.approx(np.mean([0.75, 0.5, 0.25]))


def test_frontier_area():
    assert frontier_area(np.array([0.8]), np.array([0.5])) == pytest.approx(0.4)
    clean, robust = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.5, 0.3])  # the last one is dominated
    assert frontier_area(clean, robust) == pytest.approx(0.8 * 0.5 + 0.1 * 0.1)
    grid = (np.arange(1000) + 0.5) / 1000
    rng = np.random.default_rng(0)
    clean, robust = rng.random(7), rng.random(7)
    dominated = ((grid[:, None, None] <= clean) & (grid[None, :, None] <= robust)).any(-1)
    assert frontier_area(clean, robust) == pytest.approx(dominated.mean(), abs=2e-3)


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
        unused = {key: np.zeros(359) for key in ("label", "prediction", "top5", "nll", "brier")}
        scores = PerImageScores(confidence=confidence, top1=rng.random(359) < confidence, **unused)
        value = float(calibration_error(scores, np.full(359, 1 / 359)))
        interval = basic_bootstrap_interval(value, calibration_error(scores, bootstrap_weights(359)))
        assert 0 <= interval.low <= interval.high
        contained.append(interval.low <= value <= interval.high)
    assert np.mean(contained) > 0.6
