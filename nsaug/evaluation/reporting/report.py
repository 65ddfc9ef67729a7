"""report.html: the whole evaluation as one self-contained file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from nsaug.evaluation.corruption_error import ERRORS
from nsaug.evaluation.metrics import PerImageScores
from nsaug.evaluation.reporting import noise_plots, plots
from nsaug.evaluation.reporting.aggregate import (
    SCORE,
    Weights,
    aggregate_seeds,
    pairwise_differences,
    tabulate,
    write_csv,
)
from nsaug.evaluation.reporting.formatting import (
    ResultKey,
    analysis_caption,
    analysis_lines,
    analysis_rows,
    caption,
    format_number,
    format_percent,
    main_rows,
    markdown,
    model_names,
    note_lines,
    run_counts,
    table_lines,
)
from nsaug.evaluation.results import BenchmarkResult
from nsaug.utils.files import atomic_write

MAX_PAIRS = 12
"""Differences are plotted for all pairs up to this number, otherwise against the first name only."""
MAX_SAMPLE_MODELS = 4
"""Number of models whose sample images are shown."""


def write_report(
    results: list[BenchmarkResult],
    weights: Weights,
    metadata: dict[str, Any],
    folder: Path,
    missing: Sequence[str] = (),
) -> pd.DataFrame:
    """Write results.csv, .json, .md and .png, groups.csv, comparisons.csv and report.html into a folder.

    Args:
        results: all results, failures included.
        weights: the suite's score.
        metadata: lines for the head of the report, by label.
        folder: output folder of the evaluation.
        missing: one line per missing data set.

    Returns:
        The table of `aggregate.tabulate`.
    """
    rows = tabulate(results, weights)
    groups, comparisons = aggregate_seeds(rows), pairwise_differences(results, weights)
    write_csv(rows, folder / "results.csv")
    write_csv(groups, folder / "groups.csv")
    write_csv(comparisons, folder / "comparisons.csv")
    with atomic_write(folder / "results.json") as tmp_path:
        rows.to_json(tmp_path, orient="records", indent=1)
    with atomic_write(folder / "results.md") as tmp_path:
        tmp_path.write_text(markdown(rows, groups, missing))
    plots.overview(groups, folder / "results.png")
    page = render_page(rows, groups, comparisons, results, weights, metadata, missing)
    with atomic_write(folder / "report.html") as tmp_path:
        tmp_path.write_text(page)
    return rows


def render_page(
    rows: pd.DataFrame,
    groups: pd.DataFrame,
    comparisons: pd.DataFrame,
    results: list[BenchmarkResult],
    weights: Weights,
    metadata: dict[str, Any],
    missing: Sequence[str] = (),
) -> str:
    """Content of report.html; arguments as for `write_report`, with all derived tables."""
    scored = [result for result in results if result.per_image is not None]
    names = model_names(rows)
    by_condition: dict[str, list[str]] = {}
    for result in scored:
        benchmarks = by_condition.setdefault(result.condition, [])
        if result.name not in benchmarks:
            benchmarks.append(result.name)
    clean = next(iter(by_condition.get("clean", [])), None)
    corruptions = by_condition.get("corrupted", [])
    start_at = {result.name: clean for result in scored if result.is_own_data}
    eps = training_eps(scored)
    clean_scores: dict[str, list[PerImageScores]] = {}
    for result in scored:
        if result.name == clean and result.per_image:
            clean_scores.setdefault(result.model.name, []).append(result.per_image.scores)

    has_strengths = {result.name for result in scored if result.strength is not None}

    def curves(condition: str) -> list[tuple[str, str]]:
        return [
            (b, plots.strength_curve(groups, b, start_at.get(b)))
            for b in by_condition.get(condition, [])
            if b in has_strengths
        ]

    return _template().render(
        metadata=metadata,
        caption=caption(rows, groups),
        notes=note_lines(rows),
        missing=missing,
        main=main_table(groups),
        metrics=metric_tables(groups),
        legend=[(name, _hex(color)) for name, color in plots.colors(names).items()],
        attacks=curves("attacked"),
        corruptions=curves("corrupted"),
        noises=[(b, plots.strength_curve(groups, b, None)) for b in by_condition.get("noised", [])],
        heat_maps=[(name, plots.heat_map(groups, name, corruptions)) for name in names] if corruptions else [],
        noise=noise_section(rows, groups, results),
        differences=[
            (f"{name} minus {other}", plots.differences(comparisons, name, other))
            for name, other in plotted_pairs(comparisons, names[0])
        ],
        comparisons=comparison_rows(comparisons),
        reliability=[(clean, plots.reliability(clean_scores))] if clean else [],
        eps_curves=[
            (benchmark, plots.eps_curve(rows, benchmark, eps))
            for benchmark in dict.fromkeys(result.name for result in scored)
            if len(set(eps.values())) > 1
        ],
        samples=samples(scored),
        failures=list(
            dict.fromkeys((result.model.label, result.name, result.failure) for result in results if result.failure)
        ),
        score=weights,
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("nsaug.evaluation.reporting", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
    )
    return environment.get_template("report.html")


def _hex(color: Any) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in color[:3])


def main_table(groups: pd.DataFrame) -> dict[str, Any]:
    """Top-1, score and errors, one line per benchmark and strength; the best cells of a line are marked."""
    shown = main_rows(groups)
    names = model_names(shown)
    lines = []
    for key, cells in table_lines(shown, format_percent):
        rows = key.select(shown)
        lower_is_better = rows["metric"].isin(ERRORS).any()
        best_value = rows["value"].min() if lower_is_better else rows["value"].max()
        best = set(rows[rows["value"] == best_value]["name"])
        lines.append((key.heading, list(zip(cells, [name in best for name in names], strict=True))))
    return {"names": names, "runs": run_counts(shown), "lines": lines}


def metric_tables(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for every metric other than top-1 and the score."""
    tables = []
    for metric in dict.fromkeys(groups["metric"]):
        if metric not in ("top1", SCORE):
            rows = groups[groups["metric"] == metric]
            lines = [(key.heading, cells) for key, cells in table_lines(rows, format_number)]
            tables.append({"metric": metric, "names": model_names(rows), "lines": lines})
    return tables


def noise_section(rows: pd.DataFrame, groups: pd.DataFrame, results: list[BenchmarkResult]) -> dict[str, Any] | None:
    """Table, plots and images of the analyses; None if the suite has none."""
    noise_rows = analysis_rows(groups)
    if noise_rows.empty:
        return None
    names = model_names(noise_rows)
    images: dict[str, list[dict[str, str]]] = {}
    for result in results:
        if result.analysis and result.analysis.images and len(images) < 2 * MAX_SAMPLE_MODELS:
            titled = zip(result.analysis.titles, result.analysis.images, strict=True)
            heading = f"{result.model.label}: {result.name}"
            images[heading] = [{"title": title, "image": plots.data_uri(image)} for title, image in titled]
    return {
        "caption": analysis_caption(rows),
        "names": names,
        "lines": analysis_lines(groups),
        "influence": [
            (name, noise_plots.influence_curve(noise_rows, name))
            for name in names
            if len(noise_plots.influence_rows(noise_rows, name))
        ],
        "bars": noise_plots.agreement_bars(noise_rows),
        "radius": noise_plots.radius_curve(noise_rows),
        "images": list(images.items()),
    }


def plotted_pairs(comparisons: pd.DataFrame, first: str) -> list[tuple[str, str]]:
    pairs = list(dict.fromkeys(zip(comparisons["name"], comparisons["other"], strict=True)))
    return pairs if len(pairs) <= MAX_PAIRS else [pair for pair in pairs if pair[1] == first]


def comparison_rows(comparisons: pd.DataFrame) -> list[dict[str, str]]:
    """Table of all paired differences, in percentage points."""
    table = []
    for row in comparisons.to_dict("records"):
        strength = None if pd.isna(row["strength"]) else float(row["strength"])
        cells = {
            "pair": f"{row['name']} - {row['other']}",
            "heading": ResultKey(row["benchmark"], row["condition"], strength).heading,
            "difference": f"{100 * row['difference']:+.1f}",
            "runs": str(row["seeds"] or 1),
        }
        for kind in ("seeds", "images"):
            low, high = (100 * row[f"{kind}_{end}"] for end in ("low", "high"))
            cells[kind] = "-" if pd.isna(low) else f"[{low:+.1f}, {high:+.1f}]"
        table.append(cells)
    return table


def training_eps(results: list[BenchmarkResult]) -> dict[str, float]:
    """ε by checkpoint, for models trained on nullspace noise."""
    eps: dict[str, float] = {}
    for result in results:
        metadata = result.model.metadata
        if metadata.get("method") == "nullspace" and result.model.checkpoint:
            eps[result.model.checkpoint] = float(metadata["settings"]["nullspace"]["eps"])
    return eps


def samples(results: list[BenchmarkResult]) -> list[dict[str, Any]]:
    """Sample images at every benchmark's greatest strength, with predictions, for the first run of a name."""
    models: dict[str, dict[str, Any]] = {}
    for result in results:
        name, per_image = result.model.name, result.per_image
        if per_image is None or (name not in models and len(models) == MAX_SAMPLE_MODELS):
            continue
        section = models.setdefault(name, {"label": result.model.label, "model": result.model, "lines": {}})
        if section["model"] is not result.model:
            continue
        scores, classes = per_image.scores, result.class_names
        images = []
        for i, image in enumerate(per_image.sample_images):
            label, prediction = int(scores.label[i]), int(scores.prediction[i])
            images.append(
                {"image": plots.data_uri(image), "correct": bool(scores.top1[i]), "prediction": classes[prediction]}
                | {"label": classes[label], "confidence": f"{100 * float(scores.confidence[i]):.0f} %"}
            )
        title = ResultKey(result.name, result.condition, result.strength).heading
        section["lines"][result.name] = {"title": title, "images": images}  # the last strength is the greatest
    return [section | {"lines": list(section["lines"].values())} for section in models.values()]
