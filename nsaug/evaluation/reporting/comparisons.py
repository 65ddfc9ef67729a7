"""Paired differences between models."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nsaug.evaluation.reporting.summaries import Weights, group_by_model, summarize
from nsaug.evaluation.results import BenchmarkResult
from nsaug.evaluation.statistics import bootstrap_interval, bootstrap_weights, t_interval

KEY = ["benchmark", "condition", "strength", "metric"]
COLUMNS = [
    *("name", "other", *KEY, "difference"),
    *("seeds_low", "seeds_high", "seeds", "images_low", "images_high", "images"),
]


class Mean(NamedTuple):
    """A mean over images.

    Attributes:
        ids: ids of the images.
        value: the mean.
        samples: the mean of every bootstrap sample, (NUM_RESAMPLES,); paired between models with the same images.
    """

    ids: list[str]
    value: float
    samples: np.ndarray


Means = dict[tuple[str, str, float | None, str], Mean]
"""Means of one run by the columns KEY."""


def pairwise_differences(results: list[BenchmarkResult], weights: Weights) -> pd.DataFrame:
    """Paired differences in top-1 and in all summaries between any two names, `name` minus `other`.

    Returns:
        Columns as in COLUMNS. Over seeds: Student's t on the differences between runs of the same seed (two or more),
        or between all runs and the only run of the other name. Over images: bootstrap on the differences per image,
        averaged over these runs.
    """
    runs_by_name: dict[str, dict[Any, Means]] = {}
    for model, model_results in group_by_model(results):
        runs = runs_by_name.setdefault(model.name, {})
        seed = model.columns["seed"]
        runs[f"run {len(runs)}" if seed in runs else seed] = _means(model_results, weights)
    rows: list[dict[str, Any]] = []
    for (other, other_runs), (name, runs) in itertools.combinations(runs_by_name.items(), 2):
        rows += [{"name": name, "other": other} | row for row in _differences(*_pair_runs(runs, other_runs))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _means(results: list[BenchmarkResult], weights: Weights) -> Means:
    """Top-1 and all summaries of one run."""
    values = {
        (result.name, result.condition, result.strength, "top1"): (result.per_image.ids, result.per_image.scores.top1)
        for result in results
        if result.per_image is not None
    }
    for summary in summarize(results, weights):
        values[summary.benchmark, summary.condition, None, summary.metric] = summary.ids, summary.values
    return {
        key: Mean(ids, float(array.mean()), bootstrap_weights(len(ids)) @ array.astype(np.float32))
        for key, (ids, array) in values.items()
    }


def _pair_runs(first: dict[Any, Means], second: dict[Any, Means]) -> tuple[list[Means], list[Means], int]:
    """Pair the runs of two names, and count the seeds: by seed, or all runs with the only run of the other name."""
    common = [seed for seed in first if seed in second]
    if common:
        return [first[seed] for seed in common], [second[seed] for seed in common], len(common)
    if len(first) == 1 or len(second) == 1:  # such as pretrained weights and the runs that started from them
        count = max(len(first), len(second))
        return list(first.values()) * (count // len(first)), list(second.values()) * (count // len(second)), count
    pairs = list(itertools.product(first.values(), second.values()))  # no common seed: the difference of the means
    return [a for a, _ in pairs], [b for _, b in pairs], 1


def _differences(first: list[Means], second: list[Means], num_seeds: int) -> list[dict[str, Any]]:
    rows = []
    for key, (ids, _, _) in first[0].items():
        if not all(key in run and run[key].ids == ids for run in (*first, *second)):
            continue  # missing, or other images: nothing to pair
        pairs = [(a[key], b[key]) for a, b in zip(first, second, strict=True)]
        over_seeds = t_interval(np.array([a.value - b.value for a, b in pairs]) if num_seeds > 1 else np.zeros(1))
        difference = float(np.mean([a.value - b.value for a, b in pairs]))
        over_images = bootstrap_interval(difference, np.mean([a.samples - b.samples for a, b in pairs], axis=0))
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {"difference": difference}
            | {"seeds_low": over_seeds.low, "seeds_high": over_seeds.high, "seeds": num_seeds}
            | {"images_low": over_images.low, "images_high": over_images.high, "images": len(ids)}
        )
    return rows
