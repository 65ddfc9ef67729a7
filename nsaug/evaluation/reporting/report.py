"""Output files of an evaluation; report.html is all of it as one self-contained page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from nsaug.evaluation.reporting import plots, sections
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate, write_csv
from nsaug.evaluation.reporting.archive import save_results
from nsaug.evaluation.reporting.comparisons import pairwise_differences
from nsaug.evaluation.reporting.formatting import caption, markdown, model_names
from nsaug.evaluation.reporting.frontiers import trade_offs
from nsaug.evaluation.reporting.notes import DOCS, docs_link, find_notes
from nsaug.evaluation.reporting.settings import distinct_models, find_sweeps
from nsaug.evaluation.reporting.summaries import Weights
from nsaug.evaluation.reporting.text import printable_results
from nsaug.evaluation.results import BenchmarkResult
from nsaug.utils.files import atomic_write
from nsaug.utils.text import printable


def write_report(
    results: list[BenchmarkResult],
    weights: Weights,
    metadata: dict[str, Any],
    folder: Path,
    missing: Sequence[str] = (),
) -> pd.DataFrame:
    """Write results.npz, .csv, .json, .md and .png, groups.csv, comparisons.csv and report.html into a folder.

    Args:
        results: all results, failures included.
        weights: the suite's score.
        metadata: lines for the head of the report, by label.
        folder: output folder of the evaluation.
        missing: one line per missing data set.

    Returns:
        The table of `aggregate.tabulate`.
    """
    save_results(results, weights, folder)
    results = printable_results(results)
    missing = [printable(line) for line in missing]
    rows = tabulate(results, weights)
    groups, comparisons = aggregate_seeds(rows), pairwise_differences(results, weights)
    write_csv(rows, folder / "results.csv")
    write_csv(groups, folder / "groups.csv")
    write_csv(comparisons, folder / "comparisons.csv")
    with atomic_write(folder / "results.json") as tmp_path:
        rows.to_json(tmp_path, orient="records", indent=1)
    with atomic_write(folder / "results.md") as tmp_path:
        tmp_path.write_text(markdown(rows, groups, missing), encoding="utf-8")
    plots.overview(groups, folder / "results.png")
    page = render_page(rows, groups, comparisons, results, weights, metadata, folder, missing)
    with atomic_write(folder / "report.html") as tmp_path:
        tmp_path.write_text(page, encoding="utf-8")
    return rows


def render_page(
    rows: pd.DataFrame,
    groups: pd.DataFrame,
    comparisons: pd.DataFrame,
    results: list[BenchmarkResult],
    weights: Weights,
    metadata: dict[str, Any],
    folder: Path,
    missing: Sequence[str] = (),
) -> str:
    """Content of report.html; arguments as for `write_report`, with all derived tables."""
    names = model_names(rows)
    sweeps = find_sweeps(distinct_models([result.model for result in results]))
    failures = [(result.model.label, result.name, result.failure) for result in results if result.failure]
    return str(
        _template().render(
            metadata=metadata,
            runs=sections.runs_table(results),
            caption=caption(rows, groups),
            notes=note_links(rows, folder),
            missing=missing,
            failures=list(dict.fromkeys(failures)),
            score={name: f"{weight:g}" for name, weight in weights.items()},
            main=sections.main_table(groups, comparisons),
            legend=[(name, _hex(color)) for name, color in plots.colors(names).items()],
            attacks=sections.strength_curves(groups, results, "attacked"),
            corruptions=sections.strength_curves(groups, results, "corrupted"),
            noises=sections.strength_curves(groups, results, "noised"),
            heat_maps=sections.heat_maps(groups, results),
            trade_off=sections.trade_off_section(trade_offs(groups), sweeps),
            setting_curves=sections.setting_curves(groups, sweeps),
            noise=sections.noise_section(rows, groups, results),
            differences=sections.difference_plots(comparisons, next(iter(names), None)),
            comparisons=sections.comparison_rows(comparisons),
            reliability=sections.calibration(groups, results),
            metrics=sections.metric_tables(groups),
            samples=sections.samples(results),
        )
    )


def note_links(rows: pd.DataFrame, folder: Path) -> list[dict[str, str | None]]:
    """Notes with the address of the paragraph that explains them, from a folder, and its text."""
    return [
        {"text": f"{note.scope}: {note.text}", "link": note.anchor and docs_link(note.anchor, folder)}
        | {"reference": note.anchor and f"{DOCS}#{note.anchor}"}
        for note in find_notes(rows)
    ]


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("nsaug.evaluation.reporting", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # SVG text is of type Markup
    )
    return environment.get_template("report.html")


def _hex(color: Any) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in color[:3])
