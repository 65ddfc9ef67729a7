"""Result tables: one row per number, means over seeds, and paired differences between models."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsaug.evaluation.corruption_error import SUMMARY, corruption_error_rows
from nsaug.evaluation.metrics import METRICS
from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult
from nsaug.evaluation.statistics import (
    Interval,
    basic_bootstrap_interval,
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_weights,
    t_interval,
)
from nsaug.utils.files import atomic_write

COLUMNS = [
    *("checkpoint", "name", "method", "seed"),
    *("benchmark", "condition", "strength", "metric", "value", "low", "high", "n", "over", "notes"),
]
SCORE = "score"
"""Benchmark and metric of the summary score's rows."""
NAN = float("nan")


Weights = Mapping[str, float]
"""Weights of benchmarks in the score, by name; `corruptions` means all corruptions generated on the fly."""


def score_per_image(results: list[BenchmarkResult], weights: Weights) -> tuple[list[str], np.ndarray] | None:
    """Summary score of a run: weighted mean of the benchmarks' top-1 accuracies, averaged over their strengths.

    score = sum over b of weight_b * mean over strengths s of top1(b, s), divided by the sum of the weights.

    Returns:
        Ids and scores (n,) of the images; None if a weighted benchmark is missing, or has other images.
    """
    means = []
    ids: list[str] | None = None
    for name in weights:
        scored = [(result.per_image, result.failure) for result in results if _is_scored_as(result, name)]
        if not scored or any(per_image is None for per_image, _ in scored):
            return None
        outputs = [per_image for per_image, _ in scored if per_image is not None]
        ids = ids or outputs[0].ids
        if any(output.ids != ids for output in outputs):
            return None
        means.append(np.mean([output.scores.top1 for output in outputs], axis=0))
    if ids is None:
        return None
    values = np.array(list(weights.values()))
    return ids, (values / values.sum()) @ np.stack(means)


def _is_scored_as(result: BenchmarkResult, name: str) -> bool:
    if name == "corruptions":
        return result.condition == "corrupted" and not result.is_stored
    return result.name == name


def tabulate(results: list[BenchmarkResult], weights: Weights) -> pd.DataFrame:
    """One row per model, benchmark, strength and metric, with its interval over images; columns as in COLUMNS."""
    rows = [row for result in results for row in result_rows(result)]
    return pd.DataFrame(rows + cross_benchmark_rows(results, weights), columns=COLUMNS)


def result_rows(result: BenchmarkResult) -> list[dict[str, Any]]:
    """Rows that follow from one result alone."""
    if result.analysis is not None:
        return _measurement_rows(result, result.analysis)
    if result.per_image is None:
        return []
    scores = result.per_image.scores
    n = len(scores)
    uniform, samples = np.full(n, 1 / n), bootstrap_weights(n)
    intervals = {}
    for name, metric in METRICS.items():
        to_interval = basic_bootstrap_interval if name == "ece" else bootstrap_interval
        intervals[name] = to_interval(float(metric(scores, uniform)), metric(scores, samples))
    intervals |= {name: bootstrap_mean(values) for name, values in scores.extra.items()}
    return [_row(result, name, interval) for name, interval in intervals.items()]


def cross_benchmark_rows(results: list[BenchmarkResult], weights: Weights) -> list[dict[str, Any]]:
    """Rows that need several results of a model: relative accuracy, the score, errors over all corruptions."""
    rows: list[dict[str, Any]] = []
    for model, model_results in _group_by_model(results):
        scored = [(result, result.per_image) for result in model_results if result.per_image is not None]
        clean = next((per_image for result, per_image in scored if result.condition == "clean"), None)
        for result, per_image in scored:
            if clean is not None and per_image is not clean and per_image.ids == clean.ids:
                ratio = _ratio(per_image.scores.top1, clean.scores.top1)
                rows.append(_row(result, "relative_accuracy", ratio))
        if score := score_per_image(model_results, weights):
            key = {"benchmark": SCORE, "condition": SUMMARY, "strength": None, "metric": SCORE}
            interval = vars(bootstrap_mean(score[1])) | {"n": len(score[0]), "over": "images"}
            rows.append(model.columns | key | interval)
        rows += corruption_error_rows(model_results)
    return rows


def _measurement_rows(result: BenchmarkResult, analysis: AnalysisResult) -> list[dict[str, Any]]:
    """Mean of every metric over the noises, with Student's t interval if there are several."""
    grouped: dict[Any, list[float]] = {}
    for item in analysis.measurements:
        grouped.setdefault((item.condition, item.strength, item.metric), []).append(item.value)
    rows = []
    for (condition, strength, metric), values in grouped.items():
        interval = t_interval(np.array(values)) if len(values) > 1 else Interval(values[0], NAN, NAN)
        key = {"benchmark": result.name, "condition": condition, "strength": strength, "metric": metric}
        cells = vars(interval) | {"n": len(analysis.ids), "over": "noises"}
        rows.append(result.model.columns | key | cells | {"notes": "; ".join(result.notes)})
    return rows


def _row(result: BenchmarkResult, metric: str, interval: Interval) -> dict[str, Any]:
    assert result.output is not None
    key = {"benchmark": result.name, "condition": result.condition, "strength": result.strength, "metric": metric}
    cells = vars(interval) | {"n": len(result.output.ids), "over": "images"}
    return result.model.columns | key | cells | {"notes": "; ".join(result.notes)}


def _ratio(top1: np.ndarray, clean_top1: np.ndarray) -> Interval:
    """Accuracy relative to the clean accuracy, with its bootstrap interval; NaN if no clean image is correct."""
    if not clean_top1.any():
        return Interval(NAN, NAN, NAN)
    samples = bootstrap_weights(len(clean_top1))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (samples @ top1.astype(np.float32)) / (samples @ clean_top1.astype(np.float32))
        return bootstrap_interval(top1.mean() / clean_top1.mean(), ratios)


def aggregate_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the runs that share a name, which differ only in their seed.

    Returns:
        Columns name, benchmark, condition, strength, metric, value, low, high, runs, over. The 95 % interval is
        Student's t over seeds if there are several runs (over: seeds). For a single run it is that of its row.
    """
    groups = []
    keys = ["name", "benchmark", "condition", "strength", "metric"]
    for key, group in rows.groupby(keys, dropna=False, sort=False):
        first = group.iloc[0]
        several = len(group) > 1
        interval = t_interval(group["value"].to_numpy()) if several else Interval(*first[["value", "low", "high"]])
        counts = {"runs": len(group), "over": "seeds" if several else first["over"]}
        groups.append(dict(zip(keys, key, strict=True)) | vars(interval) | counts)
    return pd.DataFrame(groups, columns=[*keys, "value", "low", "high", "runs", "over"])


def pairwise_differences(results: list[BenchmarkResult], weights: Weights) -> pd.DataFrame:
    """Paired differences in top-1 and in the score between any two names, `name` minus `other`.

    Returns:
        Columns name, other, benchmark, condition, strength, metric, difference, seeds_low, seeds_high, seeds,
        images_low, images_high, images. Over seeds: Student's t on the differences between runs of the same seed (two
        or more), or between all runs and the only run of the other name. Over images: bootstrap on the differences per
        image, averaged over these runs.
    """
    runs_by_name: dict[str, dict[Any, list[BenchmarkResult]]] = {}
    for model, model_results in _group_by_model(results):
        runs = runs_by_name.setdefault(model.name, {})
        seed = model.columns["seed"]
        runs[f"run {len(runs)}" if seed in runs else seed] = model_results
    rows: list[dict[str, Any]] = []
    for (other, other_runs), (name, runs) in itertools.combinations(runs_by_name.items(), 2):
        rows += [{"name": name, "other": other} | row for row in _differences(*_pair_runs(runs, other_runs), weights)]
    columns = ["name", "other", "benchmark", "condition", "strength", "metric", "difference"]
    intervals = ["seeds_low", "seeds_high", "seeds", "images_low", "images_high", "images"]
    return pd.DataFrame(rows, columns=[*columns, *intervals])


Runs = list[list[BenchmarkResult]]


def _pair_runs(
    first: dict[Any, list[BenchmarkResult]], second: dict[Any, list[BenchmarkResult]]
) -> tuple[Runs, Runs, int]:
    """Pair the runs of two names, and count the seeds: by seed, or all runs with the only run of the other name."""
    common = [seed for seed in first if seed in second]
    if common:
        return [first[seed] for seed in common], [second[seed] for seed in common], len(common)
    if len(first) == 1 or len(second) == 1:  # such as pretrained weights and the runs that started from them
        count = max(len(first), len(second))
        return list(first.values()) * (count // len(first)), list(second.values()) * (count // len(second)), count
    pairs = list(itertools.product(first.values(), second.values()))  # no common seed: the difference of the means
    return [a for a, _ in pairs], [b for _, b in pairs], 1


def _differences(first: Runs, second: Runs, num_seeds: int, weights: Weights) -> list[dict[str, Any]]:
    first_values, second_values = ([_values_by_key(run, weights) for run in runs] for runs in (first, second))
    all_values = (*first_values, *second_values)
    rows = []
    for key, (ids, _) in first_values[0].items():
        if not all(key in values and values[key][0] == ids for values in all_values):
            continue  # missing, or other images: nothing to pair
        differences = np.stack([a[key][1] - b[key][1] for a, b in zip(first_values, second_values, strict=True)])
        over_seeds = t_interval(differences.mean(1)) if num_seeds > 1 else Interval(float(differences.mean()), NAN, NAN)
        over_images = bootstrap_mean(differences.mean(0))
        rows.append(
            dict(zip(("benchmark", "condition", "strength", "metric"), key, strict=True))
            | {"difference": over_seeds.value}
            | {"seeds_low": over_seeds.low, "seeds_high": over_seeds.high, "seeds": num_seeds}
            | {"images_low": over_images.low, "images_high": over_images.high, "images": len(ids)}
        )
    return rows


def _values_by_key(
    results: list[BenchmarkResult], weights: Weights
) -> dict[tuple[str, str, float | None, str], tuple[list[str], np.ndarray]]:
    """Image ids, and top-1 or score per image, by (benchmark, condition, strength, metric)."""
    values: dict[tuple[str, str, float | None, str], tuple[list[str], np.ndarray]] = {}
    for result in results:
        if (per_image := result.per_image) is not None:
            key = result.name, result.condition, result.strength, "top1"
            values[key] = per_image.ids, per_image.scores.top1.astype(float)
    if score := score_per_image(results, weights):
        values[SCORE, SUMMARY, None, SCORE] = score
    return values


def _group_by_model(results: list[BenchmarkResult]) -> list[tuple[EvalModel, list[BenchmarkResult]]]:
    groups: dict[tuple[str | None, str], list[BenchmarkResult]] = {}
    for result in results:
        groups.setdefault((result.model.checkpoint, result.model.name), []).append(result)
    return [(group[0].model, group) for group in groups.values()]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically."""
    with atomic_write(path) as tmp_path:
        frame.to_csv(tmp_path, index=False)
