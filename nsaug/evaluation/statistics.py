"""95 % intervals: bootstrap over images, Student's t over seeds; also for paired differences."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

NUM_RESAMPLES = 1000
CONFIDENCE_LEVEL = 0.95


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
    """Percentile bootstrap interval from samples (NUM_RESAMPLES,)."""
    low, high = np.nanquantile(samples, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def basic_bootstrap_interval(estimate: float, samples: np.ndarray) -> Interval:
    """Basic bootstrap interval of a nonnegative estimate that is biased upwards, such as the ECE.

    Resampling adds the same bias once more, which a percentile interval would count twice (Davison & Hinkley,
    Bootstrap Methods, section 5.2).
    """
    reflected = bootstrap_interval(estimate, 2 * estimate - samples)
    return Interval(reflected.value, max(0.0, reflected.low), max(0.0, reflected.high))


def bootstrap_mean(values: np.ndarray) -> Interval:
    """Mean over images (n,) with its percentile bootstrap interval."""
    return bootstrap_interval(values.mean(), bootstrap_weights(len(values)) @ values.astype(np.float32))


def t_interval(values: np.ndarray) -> Interval:
    """Mean over seeds (k,) with Student's t interval; the bounds are NaN for k = 1."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half_width = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(mean, mean - float(half_width), mean + float(half_width))
