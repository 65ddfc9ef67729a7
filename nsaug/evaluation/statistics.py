"""Intervals: over images by the bootstrap, over seeds by Student's t; both for paired differences too."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; NaN bounds where there is nothing to tell a spread from."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=2)
def resampled_weights(n: int, seed: int = 0) -> np.ndarray:
    """Weights of n images in bootstrap samples, (RESAMPLES, n) in float32, rows summing to 1.

    The same for all models and benchmarks on n images, so that differences are paired image by image.
    """
    rng, even = np.random.default_rng(seed), np.full(n, 1 / n)
    return np.stack([rng.multinomial(n, even).astype(np.float32) / n for _ in range(RESAMPLES)])


def over_images(estimate: float, samples: np.ndarray) -> Interval:
    """The percentile interval of bootstrap samples (RESAMPLES,) about an estimate."""
    low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def basic_over_images(estimate: float, samples: np.ndarray) -> Interval:
    """The basic interval about an estimate that cannot be negative: resampling biases it as sampling did, and upwards.

    A percentile interval would add that bias twice (Davison & Hinkley, Bootstrap Methods, section 5.2).
    """
    reflected = over_images(estimate, 2 * estimate - samples)
    return Interval(reflected.value, max(0.0, reflected.low), max(0.0, reflected.high))


def mean_over_images(values: np.ndarray) -> Interval:
    """Mean of one number per image, (n,), with its bootstrap interval."""
    return over_images(values.mean(), resampled_weights(len(values)) @ values.astype(np.float32))


def over_seeds(values: np.ndarray) -> Interval:
    """Mean of one number per seed, (k,), with its t interval; of one seed there is none."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(mean, mean - float(half), mean + float(half))
