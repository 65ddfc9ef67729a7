"""Content of the sections of report.html, as plain values for its template."""

from functools import cache
from typing import Any

import pandas as pd
from timm.data import ImageNetInfo

from nsaug.evaluation.corruption_error import ERRORS
from nsaug.evaluation.metrics import PerImageScores
from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.reporting import noise_plots, plots
from nsaug.evaluation.reporting.formatting import (
    MAIN_METRICS,
    ResultKey,
    TableLine,
    analysis_caption,
    analysis_lines,
    analysis_rows,
    main_lines,
    main_rows,
    metric_lines,
    model_names,
    result_keys,
    run_counts,
)
from nsaug.evaluation.reporting.frontiers import TradeOff, area_rows
from nsaug.evaluation.reporting.settings import (
    Sweep,
    distinct_models,
    flat_settings,
    setting_columns,
    setting_title,
    varying_settings,
)
from nsaug.evaluation.reporting.summaries import SCORE
from nsaug.evaluation.results import BenchmarkResult

MAX_CORRUPTION_LINES = 12
"""More lines of single corruptions than that are folded in the main table."""
MAX_PAIRS = 12
"""Differences are plotted for all pairs up to this number, otherwise against the first name only."""
MAX_SAMPLE_MODELS = 4
"""Number of models whose sample images are shown."""

Plots = list[tuple[str, str | None]]
"""Titles, and SVG text or None for an empty plot."""


def runs_table(results: list[BenchmarkResult]) -> dict[str, Any]:
    """Training settings and digests of the weights, one line per name; columns without any value are left out."""
    models = distinct_models([result.model for result in results])
    digests = {(result.model.checkpoint, result.model.name): result.weights[:8] for result in results}
    varying = varying_settings(models)
    runs_by_name: dict[str, list[EvalModel]] = {}
    for model in models:
        runs_by_name.setdefault(model.name, []).append(model)
    lines = {name: _run_cells(runs, varying) for name, runs in runs_by_name.items()}
    for name, runs in runs_by_name.items():
        lines[name]["weights (SHA-256)"] = _join(digests[run.checkpoint, run.name] for run in runs)
    columns = [column for column in next(iter(lines.values())) if any(cells[column] for cells in lines.values())]
    return {
        "columns": columns,
        "lines": [(name, [cells[key] or "-" for key in columns]) for name, cells in lines.items()],
    }


def _run_cells(runs: list[EvalModel], varying: list[str]) -> dict[str, str]:
    settings, columns = flat_settings(runs[0]), setting_columns(runs[0], varying)
    start = settings.get("start") or (settings.get("model.name") if settings.get("model.pretrained") else None)
    cells = {"method": runs[0].metadata.get("method")}
    cells |= {setting_title(key): value for key, value in columns.items()}
    cells |= {"base weights": start, "epochs": _duration(settings)}
    return {key: _text(value) for key, value in cells.items()} | {
        "seeds": _join(_text(run.metadata.get("seed")) for run in runs)
    }


def _duration(settings: dict[str, Any]) -> str:
    epochs, steps = settings.get("trainer.max_epochs"), settings.get("trainer.max_steps")
    return f"{steps} steps" if isinstance(steps, int) and steps > 0 else _text(epochs)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _join(values: Any) -> str:
    return ", ".join(dict.fromkeys(filter(None, values)))


def main_table(groups: pd.DataFrame, comparisons: pd.DataFrame) -> dict[str, Any]:
    """The main table, many single corruptions apart; a best value is marked if it differs from every other one."""
    shown = main_rows(groups)
    names = model_names(shown)
    lines: dict[bool, list[Any]] = {False: [], True: []}  # whether it is a single corruption
    for line in main_lines(groups):
        best = best_name(line, shown, comparisons)
        cells = [(cell, name == best) for name, cell in zip(names, line.cells, strict=True)]
        lines[line.key.condition == "corrupted"].append((line.heading, cells))
    if len(lines[True]) <= MAX_CORRUPTION_LINES:
        lines = {False: lines[False] + lines[True], True: []}
    return {"names": names, "runs": run_counts(shown), "lines": lines[False], "corruptions": lines[True]}


def best_name(line: TableLine, groups: pd.DataFrame, comparisons: pd.DataFrame) -> str | None:
    """The name with the best value of a line, if its paired difference to every other name excludes 0.

    Over seeds where there are several, otherwise over images. None if no difference is known.
    """
    rows = line.key.select(groups[groups["metric"] == line.metric]).dropna(subset="value")
    if len(rows) < 2:
        return None
    sign = -1 if line.metric in ERRORS else 1
    best = str(rows["name"].iloc[int((sign * rows["value"]).argmax())])
    pairs = line.key.select(comparisons[comparisons["metric"] == line.metric])
    is_better = {}
    for row in pairs.to_dict("records"):
        if best in (row["name"], row["other"]):
            other, direction = (row["other"], sign) if row["name"] == best else (row["name"], -sign)
            kind = "seeds" if row["seeds"] > 1 else "images"
            is_better[other] = min(direction * row[f"{kind}_low"], direction * row[f"{kind}_high"]) > 0
    return best if all(is_better.get(name, False) for name in rows["name"] if name != best) else None


def metric_tables(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for every metric that the main table does not have."""
    tables = []
    for metric in dict.fromkeys(groups["metric"]):
        if metric not in MAIN_METRICS:
            names = model_names(groups[groups["metric"] == metric])
            tables.append({"metric": metric, "names": names, "lines": metric_lines(groups, metric)})
    return tables


def strength_curves(groups: pd.DataFrame, results: list[BenchmarkResult], condition: str) -> Plots:
    """Accuracy over strength for every benchmark under a condition, its plots of a single strength left out."""
    clean = next((result.name for result in results if result.condition == "clean" and result.per_image), None)
    benchmarks = {result.name: result for result in results if result.condition == condition and result.per_image}
    has_start = clean is not None and condition != "noised"
    curves = [
        (name, plots.strength_curve(groups, name, clean if has_start and result.is_own_data else None))
        for name, result in benchmarks.items()
    ]
    return [(name, curve) for name, curve in curves if curve is not None]


def heat_maps(groups: pd.DataFrame, results: list[BenchmarkResult]) -> Plots:
    """Accuracy by corruption and severity, for every name."""
    corrupted = [result.name for result in results if result.condition == "corrupted" and result.per_image]
    corruptions = list(dict.fromkeys(corrupted))
    maps = [(name, plots.heat_map(groups, name, corruptions)) for name in model_names(groups)] if corruptions else []
    return [(name, image) for name, image in maps if image is not None]


def calibration(groups: pd.DataFrame, results: list[BenchmarkResult]) -> str | None:
    """Reliability diagram on clean images."""
    scores: dict[str, list[PerImageScores]] = {}
    for result in results:
        if result.condition == "clean" and result.per_image is not None:
            scores.setdefault(result.model.name, []).append(result.per_image.scores)
    return plots.reliability(scores, model_names(groups)) if scores else None


def noise_section(rows: pd.DataFrame, groups: pd.DataFrame, results: list[BenchmarkResult]) -> dict[str, Any] | None:
    """Table, plots and images of the analyses; None if the suite has none."""
    noise_rows = analysis_rows(groups)
    if noise_rows.empty:
        return None
    names = model_names(noise_rows)
    influence = [(name, noise_plots.influence_curve(noise_rows, name)) for name in names]
    return {
        "caption": analysis_caption(rows),
        "names": names,
        "lines": analysis_lines(groups),
        "influence": [(name, plot) for name, plot in influence if plot is not None],
        "bars": noise_plots.agreement_bars(noise_rows),
        "radius": noise_plots.radius_curve(noise_rows),
        "images": _analysis_images(results),
    }


def _analysis_images(results: list[BenchmarkResult]) -> list[tuple[str, list[dict[str, str]]]]:
    images: dict[str, list[dict[str, str]]] = {}
    for result in results:
        if result.analysis and result.analysis.images and len(images) < 2 * MAX_SAMPLE_MODELS:
            titled = zip(result.analysis.titles, result.analysis.images, strict=True)
            heading = f"{result.model.label}: {result.name}"
            images[heading] = [{"title": title, "image": plots.data_uri(image)} for title, image in titled]
    return list(images.items())


def difference_plots(comparisons: pd.DataFrame, first: str | None) -> Plots:
    """Paired differences of all pairs, of many names only those to the first one."""
    pairs = list(dict.fromkeys(zip(comparisons["name"], comparisons["other"], strict=True)))
    shown = pairs if len(pairs) <= MAX_PAIRS else [pair for pair in pairs if pair[1] == first]
    return [(f"{name} minus {other}", plots.differences(comparisons, name, other)) for name, other in shown]


def comparison_rows(comparisons: pd.DataFrame) -> list[dict[str, str]]:
    """Table of all paired differences, in percentage points."""
    table = []
    for row in comparisons.to_dict("records"):
        cells = {
            "pair": f"{row['name']} - {row['other']}",
            "heading": ResultKey.of(row).heading,
            "difference": f"{100 * row['difference']:+.1f}",
            "runs": str(row["seeds"] or 1),
        }
        for kind in ("seeds", "images"):
            low, high = (100 * row[f"{kind}_{end}"] for end in ("low", "high"))
            cells[kind] = "-" if pd.isna(low) else f"[{low:+.1f}, {high:+.1f}]"
        table.append(cells)
    return table


def setting_curves(groups: pd.DataFrame, sweeps: list[Sweep]) -> list[tuple[str, Plots]]:
    """For every numeric setting that varies alone: accuracies over it, on all benchmarks but single corruptions."""
    by_key: dict[str, list[Sweep]] = {}
    for sweep in sweeps:
        if sweep.is_numeric:
            by_key.setdefault(sweep.key, []).append(sweep)
    shown = groups[groups["metric"].isin(["top1", SCORE]) & (groups["condition"] != "corrupted")]
    benchmarks = list(dict.fromkeys(key.benchmark for key in result_keys(shown)))
    return [
        (setting_title(key), [(name, plots.setting_curve(groups, same_key, name)) for name in benchmarks])
        for key, same_key in by_key.items()
    ]


def trade_off_section(offs: list[TradeOff], sweeps: list[Sweep]) -> dict[str, Any] | None:
    """Clean against robust accuracy, for three or more names or a sweep."""
    if not sweeps and max((len(off.points) for off in offs), default=0) < 3:
        return None
    frontiers = [(off.title, plots.frontier(off.points)) for off in offs]
    return {"plots": [(title, plot) for title, plot in frontiers if plot], "areas": area_rows(offs, sweeps)}


def sample_results(results: list[BenchmarkResult]) -> list[BenchmarkResult]:
    """The results whose sample images are shown: every benchmark's last strength, for the first runs of some names."""
    models: dict[str, EvalModel] = {}
    shown: dict[tuple[str, str], BenchmarkResult] = {}
    for result in results:
        name = result.model.name
        if result.per_image is None or (name not in models and len(models) == MAX_SAMPLE_MODELS):
            continue
        if models.setdefault(name, result.model) == result.model:
            shown[name, result.name] = result  # the last strength is the greatest
    return list(shown.values())


def samples(results: list[BenchmarkResult]) -> list[dict[str, Any]]:
    """Sample images with their predictions and labels, by model."""
    sections: dict[str, dict[str, Any]] = {}
    for result in sample_results(results):
        if images := _sample_cells(result):
            section = sections.setdefault(result.model.name, {"label": result.model.label, "lines": []})
            title = ResultKey(result.name, result.condition, result.strength).heading
            section["lines"].append({"title": title, "images": images})
    return list(sections.values())


def _sample_cells(result: BenchmarkResult) -> list[dict[str, Any]]:
    assert result.per_image is not None
    scores, names = result.per_image.scores, readable_names(tuple(result.class_names))
    return [
        {
            "image": plots.data_uri(image),
            "is_correct": bool(scores.top1[i]),
            "prediction": _class_name(names, int(scores.prediction[i])),
            "label": _class_name(names, int(scores.label[i])),
            "confidence": f"{100 * float(scores.confidence[i]):.0f} %",
        }
        for i, image in enumerate(result.per_image.sample_images)
    ]


def _class_name(names: tuple[str, ...], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


@cache
def readable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names with ImageNet's WordNet ids replaced by the first synonym of their descriptions."""
    info = ImageNetInfo()
    known = set(info.label_names())
    return tuple(
        info.label_name_to_description(name).partition(",")[0] if name in known else name for name in class_names
    )
