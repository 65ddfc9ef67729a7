"""From outcomes to tables: a row per number, groups of runs that differ by their seed alone, and their differences."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nsaug.evaluation.cache import AnalysisResult
from nsaug.evaluation.corruption_error import SUMMARY, CorruptionError
from nsaug.evaluation.metrics import METRICS
from nsaug.evaluation.runner import BenchmarkResult
from nsaug.evaluation.statistics import (
    Interval,
    basic_over_images,
    mean_over_images,
    over_images,
    over_seeds,
    resampled_weights,
)
from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write
from nsaug.utils.types import PositiveFloat, validated_dataclass

COLUMNS = [
    *("checkpoint", "name", "method", "seed"),
    *("benchmark", "condition", "strength", "metric", "value", "low", "high", "n", "over", "notes"),
]
SCORE = "score"
"""Benchmark and metric of the summary score's rows."""


@validated_dataclass
class Score:
    """One number for a run: the weighted mean over benchmarks of the top-1 accuracy, averaged over their strengths.

    score = sum over b of weight_b * mean over strengths s of top1(b, s), over the sum of the weights.
    """

    weights: dict[str, PositiveFloat]
    """By benchmark."""

    def check(self, benchmarks: Iterable[str]) -> None:
        """Raises UserError where a weight is given to a benchmark that the suite does not hold."""
        names = list(benchmarks)
        for name in self.weights:
            if name not in names:
                raise UserError(f"suite.score.weights.{name}: the suite has {', '.join(names)}")

    def per_image(self, outcomes: list[BenchmarkResult]) -> np.ndarray | None:
        """Each image's score, (n,), from one subject's outcomes; None where one that counts is missing."""
        by_name = {each.entry.name: each.per_image for each in outcomes if each.per_image is not None}
        found = [by_name[name] for name in self.weights if name in by_name]
        if len(found) < len(self.weights) or any(result.ids != found[0].ids for result in found):
            return None
        means = [np.mean([judged.top1 for judged in result.judged], axis=0) for result in found]
        weights = np.array(list(self.weights.values()))
        return (weights / weights.sum()) @ np.stack(means)


def tabulate(
    outcomes: list[BenchmarkResult], score: Score | None, errors: CorruptionError | None = None
) -> pd.DataFrame:
    """The tidy table: a row for each subject, benchmark, strength and metric, with its interval over images."""
    own = [row for outcome in outcomes for row in rows_of(outcome)]
    return pd.DataFrame(own + rows_across(outcomes, score, errors), columns=COLUMNS)


def rows_of(outcome: BenchmarkResult) -> list[dict[str, Any]]:
    """The rows that follow from one outcome alone."""
    if outcome.findings is not None:
        return _rows_of_findings(outcome, outcome.findings)
    result = outcome.per_image
    if result is None:
        return []
    n = len(result.ids)
    even, samples = np.full(n, 1 / n), resampled_weights(n)
    rows = []
    for strength, judged in zip(result.strengths, result.judged, strict=True):
        found = {}
        for name, value in METRICS.items():
            over = basic_over_images if name == "ece" else over_images
            found[name] = over(float(value(judged, even)), value(judged, samples))
        if not np.isnan(judged.converged).any():
            found["converged"] = mean_over_images(judged.converged)
        rows += [_row(outcome, strength, metric, interval) for metric, interval in found.items()]
    return rows


def rows_across(
    outcomes: list[BenchmarkResult], score: Score | None, errors: CorruptionError | None = None
) -> list[dict[str, Any]]:
    """The rows that take several outcomes of a subject: retention, the score, the errors over all corruptions."""
    rows: list[dict[str, Any]] = []
    for subject, own in _by_subject(outcomes):
        done = [(each, each.per_image) for each in own if each.per_image is not None]
        clean = next((result for each, result in done if each.entry.benchmark.condition == "clean"), None)
        for each, result in done:
            if clean is not None and result is not clean and result.ids == clean.ids:
                for strength, judged in zip(result.strengths, result.judged, strict=True):
                    rows.append(_row(each, strength, "retention", _ratio(judged.top1, clean.judged[0].top1)))
        per_image = score.per_image(own) if score else None
        if per_image is not None:
            told = {"benchmark": SCORE, "condition": SUMMARY, "strength": None, "metric": SCORE}
            spread = vars(mean_over_images(per_image)) | {"n": len(per_image), "over": "images"}
            rows.append(subject.columns | told | spread)
        rows += errors.rows(own) if errors else []
    return rows


def _rows_of_findings(outcome: BenchmarkResult, findings: AnalysisResult) -> list[dict[str, Any]]:
    """Each metric's mean over the noises, with Student's t over them where there are several."""
    found: dict[Any, list[float]] = {}
    for each in findings.measures:
        found.setdefault((each.condition, each.strength, each.metric), []).append(each.value)
    rows = []
    for (condition, strength, metric), values in found.items():
        nothing = float("nan")
        interval = over_seeds(np.array(values)) if len(values) > 1 else Interval(values[0], nothing, nothing)
        told = {"benchmark": outcome.entry.name, "condition": condition, "strength": strength, "metric": metric}
        spread = vars(interval) | {"n": len(findings.ids), "over": "noises"}
        rows.append(outcome.subject.columns | told | spread | {"notes": "; ".join(outcome.notes)})
    return rows


def _row(outcome: BenchmarkResult, strength: float | None, metric: str, interval: Interval) -> dict[str, Any]:
    assert outcome.result is not None
    told = {"benchmark": outcome.entry.name, "condition": outcome.entry.benchmark.condition, "strength": strength}
    spread = vars(interval) | {"n": len(outcome.result.ids), "over": "images"}
    return outcome.subject.columns | told | {"metric": metric} | spread | {"notes": "; ".join(outcome.notes)}


def _ratio(robust: np.ndarray, clean: np.ndarray) -> Interval:
    """Accuracy under a change over accuracy without, with its bootstrap interval; NaN where nothing is right at all."""
    if not clean.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    samples = resampled_weights(len(clean))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (samples @ robust.astype(np.float32)) / (samples @ clean.astype(np.float32))
        return over_images(robust.mean() / clean.mean(), values)


def grouped(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the runs of each name, which differ by their seed alone.

    Returns:
        Columns name, benchmark, condition, strength, metric, value, low, high, runs, over. The 95 % interval is
        Student's t over seeds where there are several runs (over: seeds), else the bootstrap over images, or of an
        analysis Student's t over its noises.
    """
    found = []
    keys = ["name", "benchmark", "condition", "strength", "metric"]
    for key, own in rows.groupby(keys, dropna=False, sort=False):
        several = len(own) > 1
        interval = over_seeds(own["value"].to_numpy()) if several else Interval(*own.iloc[0][["value", "low", "high"]])
        told = {"runs": len(own), "over": "seeds" if several else own.iloc[0]["over"]}
        found.append(dict(zip(keys, key, strict=True)) | vars(interval) | told)
    return pd.DataFrame(found, columns=[*keys, "value", "low", "high", "runs", "over"])


def compared(outcomes: list[BenchmarkResult], score: Score | None) -> pd.DataFrame:
    """Every two names by their paired difference in top-1 and in the score, `name` minus `other`.

    Returns:
        Columns name, other, benchmark, condition, strength, metric, difference, seeds_low, seeds_high, seeds,
        images_low, images_high, images. Over seeds: Student's t on the differences of runs of the same seed, of two or
        more, or of all runs to the other name's only one. Over images: the bootstrap on the differences of each image's
        mean over these runs.
    """
    names: dict[str, dict[Any, list[BenchmarkResult]]] = {}
    for subject, its in _by_subject(outcomes):
        runs = names.setdefault(subject.name, {})
        seed = subject.columns["seed"]
        runs[f"run {len(runs)}" if seed in runs else seed] = its
    rows: list[dict[str, Any]] = []
    for (other, theirs), (name, own) in itertools.combinations(names.items(), 2):
        rows += [{"name": name, "other": other} | row for row in _differences(*_paired(own, theirs), score)]
    columns = ["name", "other", "benchmark", "condition", "strength", "metric", "difference"]
    spreads = ["seeds_low", "seeds_high", "seeds", "images_low", "images_high", "images"]
    return pd.DataFrame(rows, columns=[*columns, *spreads])


Runs = list[list[BenchmarkResult]]


def _paired(own: dict[Any, list[BenchmarkResult]], theirs: dict[Any, list[BenchmarkResult]]) -> tuple[Runs, Runs, int]:
    """The runs of two names in pairs, and over how many seeds: of the same seed; or all against the only other one."""
    common = [seed for seed in own if seed in theirs]
    if common:
        return [own[seed] for seed in common], [theirs[seed] for seed in common], len(common)
    if len(own) == 1 or len(theirs) == 1:  # weights that were not trained here, say, against each run from them
        count = max(len(own), len(theirs))
        return list(own.values()) * (count // len(own)), list(theirs.values()) * (count // len(theirs)), count
    pairs = list(itertools.product(own.values(), theirs.values()))  # no seed in common: the difference of the means
    return [mine for mine, _ in pairs], [other for _, other in pairs], 1


def _differences(own: Runs, other: Runs, seeds: int, score: Score | None) -> list[dict[str, Any]]:
    ours, theirs = ([_vectors(run, score) for run in runs] for runs in (own, other))
    rows = []
    for key in ours[0]:
        if not all(key in each for each in (*ours, *theirs)):
            continue
        ids = ours[0][key][0]
        if not all(each[key][0] == ids for each in (*ours, *theirs)):
            continue  # other images: nothing to pair
        each = np.stack([a[key][1] - b[key][1] for a, b in zip(ours, theirs, strict=True)])
        seed = over_seeds(each.mean(1)) if seeds > 1 else Interval(float(each.mean()), float("nan"), float("nan"))
        image = mean_over_images(each.mean(0))
        told = dict(zip(("benchmark", "condition", "strength", "metric"), key, strict=True))
        rows.append(
            told
            | {"difference": seed.value}
            | {"seeds_low": seed.low, "seeds_high": seed.high, "seeds": seeds}
            | {"images_low": image.low, "images_high": image.high, "images": len(ids)}
        )
    return rows


def _vectors(outcomes: list[BenchmarkResult], score: Score | None) -> dict[tuple[str, str, float | None, str], Any]:
    """One number per image by benchmark, condition, strength and metric, with the images' ids."""
    found: dict[tuple[str, str, float | None, str], Any] = {}
    for outcome in outcomes:
        if (result := outcome.per_image) is not None:
            for strength, judged in zip(result.strengths, result.judged, strict=True):
                key = outcome.entry.name, outcome.entry.benchmark.condition, strength, "top1"
                found[key] = result.ids, judged.top1.astype(float)
    per_image = score.per_image(outcomes) if score else None
    if per_image is not None:
        ids = next(outcome.per_image.ids for outcome in outcomes if outcome.per_image is not None)
        found[SCORE, SUMMARY, None, SCORE] = ids, per_image
    return found


def _by_subject(outcomes: list[BenchmarkResult]) -> list[tuple[Any, list[BenchmarkResult]]]:
    found: dict[tuple[str | None, str], list[BenchmarkResult]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.subject.checkpoint, outcome.subject.name), []).append(outcome)
    return [(own[0].subject, own) for own in found.values()]


def append(frame: pd.DataFrame, path: Path, new: bool) -> None:
    """Adds rows to a table that grows, or begins it; `write` replaces it in the end."""
    frame.to_csv(path, index=False, header=new, mode="w" if new else "a")


def write(frame: pd.DataFrame, path: Path) -> None:
    """A table as CSV."""
    with atomic_write(path) as draft:
        frame.to_csv(draft, index=False)
