"""Result tables: one row per number, and means over seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsaug.evaluation.metrics import METRICS, PerImageScores
from nsaug.evaluation.reporting.settings import distinct_models, setting_columns, varying_settings
from nsaug.evaluation.reporting.summaries import Weights, group_by_model, summarize
from nsaug.evaluation.reporting.text import csv_cell
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult, Summary
from nsaug.evaluation.statistics import (
    Interval,
    basic_bootstrap_interval,
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_weights,
    fraction_interval,
    positive_interval,
    proportion_interval,
    t_interval,
)
from nsaug.utils.files import atomic_write

MODEL_COLUMNS = ["checkpoint", "name", "method", "eps", "seed"]
KEY_COLUMNS = ["benchmark", "condition", "strength", "metric"]
VALUE_COLUMNS = ["value", "low", "high", "n", "over", "notes"]
KNOWN = {*MODEL_COLUMNS, *KEY_COLUMNS, *VALUE_COLUMNS, "runs"}
POSITIVE_METRICS = {
    *("nll", "ece", "brier", "aurc", "relative_accuracy"),
    *("influence", "rms", "radius", "relative radius", "feature_change", "nullity"),
}
FRACTIONS = {
    *("top1", "top5", "score", "expected_robustness", "converged", "agreement", "unreachable_energy"),
    *("shape_accuracy", "texture_accuracy", "shape_bias"),
    *("corruption_error", "mean_corruption_error", "mean_corruption_error_on_the_fly"),
}
"""Metrics in [0, 1]."""
NAN = float("nan")

Row = dict[str, Any]


def tabulate(results: list[BenchmarkResult], weights: Weights) -> pd.DataFrame:
    """One row per model, benchmark, strength and metric, with its interval.

    Returns:
        MODEL_COLUMNS, a column for every setting that varies between the runs, KEY_COLUMNS and VALUE_COLUMNS.
    """
    varying = [
        key for key in varying_settings(distinct_models([result.model for result in results])) if key not in KNOWN
    ]
    rows: list[Row] = []
    for model, model_results in group_by_model(results):
        model_rows = [row for result in model_results for row in result_rows(result)]
        model_rows += relative_accuracy_rows(model_results)
        model_rows += [_summary_row(summary) for summary in summarize(model_results, weights)]
        cells = model.columns | setting_columns(model, varying)
        rows += [cells | row for row in model_rows]
    return pd.DataFrame(rows, columns=[*MODEL_COLUMNS, *varying, *KEY_COLUMNS, *VALUE_COLUMNS])


def varying_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of settings that vary between runs."""
    return [column for column in frame.columns if column not in KNOWN]


def result_rows(result: BenchmarkResult) -> list[Row]:
    """Rows that follow from one result alone."""
    if result.analysis is not None:
        return _measurement_rows(result, result.analysis)
    if result.per_image is None:
        return []
    scores = result.per_image.scores
    intervals = _metric_intervals(scores) | _extra_intervals(scores)
    return [_row(result, metric, interval) for metric, interval in intervals.items()]


def _metric_intervals(scores: PerImageScores) -> dict[str, Interval]:
    n = len(scores)
    uniform, samples = np.full(n, 1 / n), bootstrap_weights(n)
    intervals = {}
    for name, metric in METRICS.items():
        if name in ("top1", "top5"):
            intervals[name] = _mean_interval(getattr(scores, name))
            continue
        to_interval = basic_bootstrap_interval if name == "ece" else bootstrap_interval
        intervals[name] = to_interval(float(metric(scores, uniform)), metric(scores, samples))
    return intervals


def _extra_intervals(scores: PerImageScores) -> dict[str, Interval]:
    """Means of a benchmark's own metrics; on cue-conflict images also the shape bias."""
    extra = dict(scores.extra)
    if not {"shape", "texture"} <= extra.keys():
        return {name: _mean_interval(values) for name, values in extra.items()}
    shape, texture = extra.pop("shape"), extra.pop("texture")
    intervals = {name: _mean_interval(values) for name, values in extra.items()}
    intervals |= {"shape_accuracy": _mean_interval(shape), "texture_accuracy": _mean_interval(texture)}
    return intervals | {"shape_bias": _ratio_of_means(shape, shape + 1.0 * texture)}


def _mean_interval(values: np.ndarray) -> Interval:
    """Mean over images (n,): Wilson's interval for proportions, otherwise the bootstrap."""
    return proportion_interval(values) if values.dtype == bool else bootstrap_mean(values)


def _ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> Interval:
    """Ratio of two means over the same images (n,) with its bootstrap interval; NaN if the denominator is 0."""
    if not denominator.any():
        return Interval(NAN, NAN, NAN)
    samples = bootstrap_weights(len(numerator))
    with np.errstate(divide="ignore", invalid="ignore"):  # resamples with a denominator of 0 are left out
        ratios = (samples @ numerator.astype(np.float32)) / (samples @ denominator.astype(np.float32))
    return bootstrap_interval(numerator.mean() / denominator.mean(), np.where(np.isfinite(ratios), ratios, NAN))


def relative_accuracy_rows(results: list[BenchmarkResult]) -> list[Row]:
    """Top-1 relative to the clean accuracy, wherever the images are those of the clean benchmark."""
    scored = [(result, result.per_image) for result in results if result.per_image is not None]
    clean = next((per_image for result, per_image in scored if result.condition == "clean"), None)
    return [
        _row(result, "relative_accuracy", _ratio_of_means(per_image.scores.top1, clean.scores.top1))
        for result, per_image in scored
        if clean is not None and per_image is not clean and per_image.ids == clean.ids
    ]


def _measurement_rows(result: BenchmarkResult, analysis: AnalysisResult) -> list[Row]:
    """Mean of every metric over the noises."""
    grouped: dict[Any, list[float]] = {}
    for item in analysis.measurements:
        grouped.setdefault((item.condition, item.strength, item.metric), []).append(item.value)
    rows = []
    for (condition, strength, metric), values in grouped.items():
        key = {"benchmark": result.name, "condition": condition, "strength": strength, "metric": metric}
        cells = vars(_interval_of_runs(metric, np.array(values))) | {"n": len(analysis.ids), "over": "noises"}
        rows.append(key | cells | {"notes": join_notes(result.notes)})
    return rows


def _interval_of_runs(metric: str, values: np.ndarray) -> Interval:
    """Mean over noises or seeds (k,) with an interval inside the metric's range."""
    if metric in FRACTIONS:
        return fraction_interval(values)
    return positive_interval(values) if metric in POSITIVE_METRICS else t_interval(values)


def _summary_row(summary: Summary) -> Row:
    key = {"benchmark": summary.benchmark, "condition": summary.condition, "strength": None, "metric": summary.metric}
    cells = vars(bootstrap_mean(summary.values)) | {"n": len(summary.ids), "over": "images"}
    return key | cells | {"notes": join_notes(summary.notes)}


def _row(result: BenchmarkResult, metric: str, interval: Interval) -> Row:
    assert result.output is not None
    key = {"benchmark": result.name, "condition": result.condition, "strength": result.strength, "metric": metric}
    cells = vars(interval) | {"n": len(result.output.ids), "over": "images"}
    return key | cells | {"notes": join_notes(result.notes)}


def join_notes(notes: tuple[str, ...]) -> str:
    """Notes as one cell; `split_notes` is the inverse, up to punctuation."""
    return "; ".join(note.replace("; ", ", ") for note in notes)


def split_notes(cell: str) -> list[str]:
    return [note for note in cell.split("; ") if note]


def aggregate_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the runs that share a name, which differ only in their seed.

    Returns:
        Columns name, method, eps and the varying settings, KEY_COLUMNS, value, low, high, runs, over. The 95 % interval
        is Student's t over seeds if there are three or more runs (over: seeds). For a single run it is that of its row.
    """
    groups = []
    keys = ["name", *KEY_COLUMNS]
    settings = ["method", "eps", *varying_columns(rows)]
    for key, group in rows.groupby(keys, dropna=False, sort=False):
        first = group.iloc[0]
        several = len(group) > 1
        interval = Interval(*first[["value", "low", "high"]])
        if several:
            interval = _interval_of_runs(first["metric"], group["value"].to_numpy(float))
        counts = {"runs": len(group), "over": "seeds" if several else first["over"]}
        groups.append(dict(zip(keys, key, strict=True)) | dict(first[settings]) | vars(interval) | counts)
    return pd.DataFrame(groups, columns=["name", *settings, *KEY_COLUMNS, "value", "low", "high", "runs", "over"])


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically; text that a spreadsheet would run as a formula gets a leading apostrophe."""
    safe = frame.map(csv_cell).rename(columns=csv_cell)
    with atomic_write(path) as tmp_path:
        safe.to_csv(tmp_path, index=False)
