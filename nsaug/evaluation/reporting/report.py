"""report.html: one file that shows an evaluation, with nothing to fetch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from nsaug.evaluation.corruption_error import ERRORS
from nsaug.evaluation.metrics import PerImageScores
from nsaug.evaluation.reporting import noise_plots, plots
from nsaug.evaluation.reporting.aggregate import SCORE, Score, compared, grouped, write
from nsaug.evaluation.reporting.formatting import (
    FOREMOST,
    Place,
    caption,
    findings,
    grid,
    headline,
    markdown,
    names,
    noise_caption,
    noise_lines,
    number,
    percent,
    remark_lines,
    runs,
)
from nsaug.evaluation.runner import BenchmarkResult
from nsaug.utils.files import atomic_write

SHOWN_PAIRS = 12
"""Plots of differences: all pairs up to that many, then each name against the first."""
SHOWN_MODELS = 4
"""How many models' sample images are shown."""


def write_report(
    rows: pd.DataFrame,
    outcomes: list[BenchmarkResult],
    score: Score | None,
    class_names: list[str],
    told: dict[str, Any],
    folder: Path,
    absent: Sequence[str] = (),
) -> None:
    """Writes results.csv, .json, .md and .png, groups.csv, comparisons.csv and report.html into a folder.

    Args:
        rows: `table.tabulate`'s.
        outcomes: all of them, failures included.
        score: the suite's, if it has one.
        class_names: by class index, for models whose record names none.
        told: what was evaluated and when, as text by label.
        folder: the evaluation's own.
        absent: a line for each benchmark whose data are not there.
    """
    groups, comparisons = grouped(rows), compared(outcomes, score)
    write(rows, folder / "results.csv")
    write(groups, folder / "groups.csv")
    write(comparisons, folder / "comparisons.csv")
    with atomic_write(folder / "results.json") as draft:
        rows.to_json(draft, orient="records", indent=1)
    with atomic_write(folder / "results.md") as draft:
        draft.write_text(markdown(rows, groups, absent))
    plots.overview(groups, folder / "results.png")
    with atomic_write(folder / "report.html") as draft:
        draft.write_text(page(rows, groups, comparisons, outcomes, score, class_names, told, absent))


def page(
    rows: pd.DataFrame,
    groups: pd.DataFrame,
    comparisons: pd.DataFrame,
    outcomes: list[BenchmarkResult],
    score: Score | None,
    class_names: list[str],
    told: dict[str, Any],
    absent: Sequence[str] = (),
) -> str:
    """report.html; arguments as for `write_report`, with `table.grouped`'s and `table.compared`'s tables."""
    done = [outcome for outcome in outcomes if outcome.per_image is not None]
    who = names(rows)
    by_condition: dict[str, list[str]] = {}
    for outcome in done:
        found = by_condition.setdefault(outcome.entry.benchmark.condition, [])
        if outcome.entry.name not in found:
            found.append(outcome.entry.name)
    clean = next(iter(by_condition.get("clean", [])), None)
    corruptions = by_condition.get("corrupted", [])
    starts = {outcome.entry.name: clean for outcome in done if outcome.entry.benchmark.on_own_images}
    eps = trained_eps(done)
    judged: dict[str, list[PerImageScores]] = {}
    for outcome in done:
        if outcome.entry.name == clean and outcome.per_image:
            judged.setdefault(outcome.subject.name, []).append(outcome.per_image.judged[0])
    return _template().render(
        told=told,
        caption=caption(rows, groups),
        notes=remark_lines(rows),
        absent=absent,
        main=main_table(groups),
        metrics=metric_tables(groups),
        legend=[(name, _css(colour)) for name, colour in plots.colours(who).items()],
        attacks=[(b, plots.strength_curve(groups, b, starts.get(b))) for b in by_condition.get("attacked", [])],
        corruptions=[(b, plots.strength_curve(groups, b, starts.get(b))) for b in corruptions],
        noises=[(b, plots.strength_curve(groups, b, None)) for b in by_condition.get("noised", [])],
        heat_maps=[(name, plots.heat_map(groups, name, corruptions)) for name in who] if corruptions else [],
        noise=noise_section(rows, groups, outcomes),
        differences=[
            (f"{name} minus {other}", plots.differences(comparisons, name, other))
            for name, other in shown_pairs(comparisons, who[0])
        ],
        comparisons=comparison_rows(comparisons),
        reliability=[(clean, plots.reliability(judged))] if clean else [],
        eps_curves=[
            (benchmark, plots.eps_curve(rows, benchmark, eps))
            for benchmark in dict.fromkeys(outcome.entry.name for outcome in done)
            if len(set(eps.values())) > 1
        ],
        samples=samples(done, class_names),
        failures=[(o.subject.label, o.entry.name, o.failure) for o in outcomes if o.failure],
        score=score.weights if score else None,
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("nsaug.evaluation.reporting", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
    )
    return environment.get_template("report.html")


def _css(colour: Any) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def main_table(groups: pd.DataFrame) -> dict[str, Any]:
    """Top-1 and the score, a row per benchmark and strength; the best of each row is marked."""
    shown = headline(groups)
    lines = []
    for place, cells in grid(shown, percent):
        own = place.of(shown)
        least = own["metric"].isin(ERRORS).any()
        best = set(own[own["value"] == (own["value"].min() if least else own["value"].max())]["name"])
        marked = [name in best for name in names(shown)]
        lines.append((place.heading, list(zip(cells, marked, strict=True))))
    return {"names": names(shown), "runs": runs(shown), "lines": lines}


def metric_tables(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for each further metric, its numbers as they are."""
    tables = []
    for metric in dict.fromkeys(groups["metric"]):
        if metric not in ("top1", SCORE):
            own = groups[groups["metric"] == metric]
            lines = [(place.heading, cells) for place, cells in grid(own, number)]
            tables.append({"metric": metric, "names": names(own), "lines": lines})
    return tables


def noise_section(rows: pd.DataFrame, groups: pd.DataFrame, outcomes: list[BenchmarkResult]) -> dict[str, Any] | None:
    """What analyses found: a table, plots and pictures; None where the suite has none."""
    own = findings(groups)
    if own.empty:
        return None
    who = names(own)
    pictures: dict[str, list[dict[str, str]]] = {}
    for outcome in outcomes:
        if outcome.findings and outcome.findings.pictures and len(pictures) < 2 * SHOWN_MODELS:
            shown = zip(outcome.findings.titles, outcome.findings.pictures, strict=True)
            title = f"{outcome.subject.label}: {outcome.entry.name}"
            pictures[title] = [{"title": each, "image": plots.picture(pixels)} for each, pixels in shown]
    return {
        "caption": noise_caption(rows),
        "names": who,
        "lines": noise_lines(groups, FOREMOST),
        "influence": [
            (name, noise_plots.influence_curve(own, name)) for name in who if len(noise_plots.curves(own, name))
        ],
        "bars": noise_plots.agreement_bars(own),
        "radius": noise_plots.radius_curve(own),
        "pictures": list(pictures.items()),
    }


def shown_pairs(comparisons: pd.DataFrame, first: str) -> list[tuple[str, str]]:
    pairs = list(dict.fromkeys(zip(comparisons["name"], comparisons["other"], strict=True)))
    return pairs if len(pairs) <= SHOWN_PAIRS else [pair for pair in pairs if pair[1] == first]


def comparison_rows(comparisons: pd.DataFrame) -> list[dict[str, str]]:
    """Every pair and benchmark, in points, each interval with what it is over."""
    found = []
    for row in comparisons.to_dict("records"):
        strength = None if pd.isna(row["strength"]) else float(row["strength"])
        place = Place(row["benchmark"], row["condition"], strength)
        bounds = {kind: [100 * row[f"{kind}_{end}"] for end in ("low", "high")] for kind in ("seeds", "images")}
        spans = {kind: "-" if pd.isna(low) else f"[{low:+.1f}, {high:+.1f}]" for kind, (low, high) in bounds.items()}
        told = {"pair": f"{row['name']} - {row['other']}", "where": place.heading}
        found.append(told | spans | {"difference": f"{100 * row['difference']:+.1f}", "runs": str(row["seeds"] or 1)})
    return found


def trained_eps(outcomes: list[BenchmarkResult]) -> dict[str, float]:
    """The ε of each checkpoint that was trained on nullspace noise."""
    found: dict[str, float] = {}
    for outcome in outcomes:
        record = outcome.subject.record
        if record.get("method") == "nullspace" and outcome.subject.checkpoint:
            found[outcome.subject.checkpoint] = float(record["settings"]["nullspace"]["eps"])
    return found


def samples(outcomes: list[BenchmarkResult], class_names: list[str]) -> list[dict[str, Any]]:
    """The kept images at each benchmark's greatest strength, by the first run of each name, with what it said."""
    found: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        name, result = outcome.subject.name, outcome.per_image
        if result is None or (name not in found and len(found) == SHOWN_MODELS):
            continue
        own = found.setdefault(name, {"label": outcome.subject.label, "subject": outcome.subject, "lines": []})
        if own["subject"] is not outcome.subject:
            continue
        hardest = max(range(len(result.strengths)), key=lambda place: result.strengths[place] or 0)
        judged, strength = result.judged[hardest], result.strengths[hardest]
        images = []
        classes = outcome.subject.record.get("class_names", class_names)
        for rank, pixels in zip(result.pictured, result.pictures[hardest], strict=True):
            label, said = int(judged.label[rank]), int(judged.prediction[rank])
            images.append(
                {"image": plots.picture(pixels), "right": label == said, "said": classes[said]}
                | {"label": classes[label], "confidence": f"{100 * float(judged.confidence[rank]):.0f} %"}
            )
        place = Place(outcome.entry.name, outcome.entry.benchmark.condition, strength)
        own["lines"].append({"title": place.heading, "images": images})
    return list(found.values())
