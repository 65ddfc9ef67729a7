"""95 % intervals over images and over seeds, also for paired differences; summaries over radii and over sweeps."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

NUM_RESAMPLES = 1000
CONFIDENCE_LEVEL = 0.95
NAN = float("nan")
MIN_COUNT = 3
"""With fewer seeds or noises there is no interval: with two, Student's factor is 12.7."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; the bounds are NaN if the spread is unknown."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=2)
def bootstrap_weights(n: int, seed: int = 0) -> np.ndarray:
    """Weights of n images in bootstrap samples, (NUM_RESAMPLES, n) in float32; rows sum to 1.

    All models and benchmarks with n images share them, so that differences are paired by image.
    """
    rng, uniform = np.random.default_rng(seed), np.full(n, 1 / n)
    return np.stack([rng.multinomial(n, uniform).astype(np.float32) / n for _ in range(NUM_RESAMPLES)])


def bootstrap_interval(estimate: float, samples: np.ndarray) -> Interval:
    """Percentile bootstrap interval from samples (NUM_RESAMPLES,); the bounds are NaN if all samples are equal."""
    if np.nanmin(samples) == np.nanmax(samples):  # such as the difference of two models with the same errors
        return Interval(float(estimate), NAN, NAN)
    low, high = np.nanquantile(samples, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def basic_bootstrap_interval(estimate: float, samples: np.ndarray) -> Interval:
    """Basic bootstrap interval of a nonnegative estimate that is biased upwards, such as the ECE.

    Resampling adds the same bias once more, which a percentile interval would count twice (Davison & Hinkley,
    Bootstrap Methods, section 5.2).
    """
    reflected = bootstrap_interval(estimate, 2 * estimate - samples)
    low, high = np.maximum([reflected.low, reflected.high], 0)  # NaN stays NaN
    return Interval(reflected.value, float(low), float(high))


def bootstrap_mean(values: np.ndarray) -> Interval:
    """Mean over images (n,) with its percentile bootstrap interval; the bounds are NaN if all values are equal."""
    if values.min() == values.max():  # rounding alone would give the samples a spread
        return Interval(float(values.mean()), NAN, NAN)
    return bootstrap_interval(values.mean(), bootstrap_weights(len(values)) @ values.astype(np.float32))


def proportion_interval(correct: np.ndarray) -> Interval:
    """Mean of 0/1 values (n,) with Wilson's score interval, which is right at 0 and 1, too (JASA 22:209, 1927)."""
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return Interval(float(correct.mean()), float(interval.low), float(interval.high))


def t_interval(values: np.ndarray) -> Interval:
    """Mean over seeds (k,) with Student's t interval; the bounds are NaN for k below MIN_COUNT."""
    mean = float(values.mean())
    if len(values) < MIN_COUNT:
        return Interval(mean, NAN, NAN)
    half_width = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(mean, mean - float(half_width), mean + float(half_width))


def fraction_interval(values: np.ndarray) -> Interval:
    """Mean of fractions (k,) in [0, 1], such as accuracies over seeds: `t_interval`, cut to this range."""
    interval = t_interval(values)
    low, high = np.clip([interval.low, interval.high], 0, 1)
    return Interval(interval.value, float(low), float(high))


def positive_interval(values: np.ndarray) -> Interval:
    """Mean of positive quantities (k,), such as norms, with an interval that stays positive.

    Student's t interval of the mean of logarithms, exponentiated and scaled to the arithmetic mean: the bounds are
    mean * exp(± half width). Values that are not all positive have the interval of `t_interval`, cut at 0.
    """
    mean = float(values.mean())
    if not (values > 0).all():
        interval = t_interval(values)
        return Interval(mean, max(interval.low, 0.0), interval.high) if (values >= 0).all() else interval
    logarithms = t_interval(np.log(values))
    half_width = logarithms.high - logarithms.value
    return Interval(mean, mean * float(np.exp(-half_width)), mean * float(np.exp(half_width)))


def expected_robustness(correct: np.ndarray) -> np.ndarray:
    """Mean over a grid of radii of whether an image is classified correctly.

    R_i = 1 / (k + 1) * sum over radii r in {0, r_1, ..., r_k} of correct_i(r); all radii, 0 included, count equally.

    Args:
        correct: (k + 1, n), in the first row for clean images.

    Returns:
        (n,); the mean over images is the expected robustness.
    """
    return np.asarray(correct, float).mean(0)


def frontier_area(clean: np.ndarray, robust: np.ndarray) -> float:
    """Area below the frontier of clean and robust accuracy over a sweep: share of the unit square that it dominates.

    A point (c, r) dominates the rectangle [0, c] x [0, r]; the area is that of the union (the hypervolume with the
    reference point (0, 0); Zitzler and Thiele, PPSN 1998).

    Args:
        clean: accuracies of the m models of a sweep on clean images, (m,), in [0, 1].
        robust: their robust accuracies, (m,), in [0, 1].
    """
    area = covered = 0.0
    for c, r in sorted(zip(clean, robust, strict=True), key=lambda point: -point[1]):
        area += max(0.0, float(c) - covered) * float(r)
        covered = max(covered, float(c))
    return area
