"""Formatting of result tables: one row per benchmark and strength, one column per model name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text

from nsaug.data.datamodule import VALIDATION_NOTE
from nsaug.evaluation.benchmarks import CONDITIONS
from nsaug.evaluation.corruption_error import ERRORS
from nsaug.evaluation.reporting.notes import find_notes
from nsaug.evaluation.reporting.summaries import EXPECTED_ROBUSTNESS, SCORE
from nsaug.evaluation.results import AVERAGED, SUMMARY, format_strength
from nsaug.utils.text import markdown_text

ALPHA_METRICS = ("influence", "agreement", "confidence_change", "feature_change", "rms", "unreachable_energy")
"""Metrics that analyses measure at every scale α of a noise."""
MAIN_METRICS = ("top1", EXPECTED_ROBUSTNESS, SCORE, *ERRORS, "shape_bias")
"""Metrics of the main table, all of them fractions."""
HEADLINE_METRICS = ("converged", "rms", "influence", "agreement", "radius", "nullity")
"""Metrics of analyses in the terminal, in results.md and in the report's main tables."""


class ResultKey(NamedTuple):
    """A benchmark at one strength: the key of a table row."""

    benchmark: str
    condition: str
    strength: float | None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "ResultKey":
        """The key of a row of a table."""
        return cls(row["benchmark"], row["condition"], None if pd.isna(row["strength"]) else float(row["strength"]))

    @property
    def heading(self) -> str:
        """Row heading; an attack's radius in 1/255 if it is a whole number of them."""
        title = self.benchmark
        if self.condition == AVERAGED:
            title += ", expected robustness"
        elif self.condition not in (*CONDITIONS, SUMMARY):
            title += f": {self.condition}"
        return title if self.strength is None else f"{title} {self.strength_text}"

    @property
    def strength_text(self) -> str:
        return "" if self.strength is None else format_strength(self.strength, self.condition)

    def select(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a table that have this key."""
        same = frame["strength"].isna() if self.strength is None else frame["strength"] == self.strength
        return frame[(frame["benchmark"] == self.benchmark) & (frame["condition"] == self.condition) & same]


def result_keys(frame: pd.DataFrame) -> list[ResultKey]:
    """Distinct keys in the order of the suite, summaries last."""
    keys = [ResultKey.of(row) for row in frame[[*ResultKey._fields]].drop_duplicates().to_dict("records")]
    return sorted(dict.fromkeys(keys), key=lambda key: key.condition in (AVERAGED, SUMMARY))


def model_names(frame: pd.DataFrame) -> list[str]:
    """Distinct names in the order of the rows."""
    return list(dict.fromkeys(frame["name"]))


def main_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main table: top-1 and the summaries of several benchmarks."""
    return groups[groups["metric"].isin(MAIN_METRICS)]


def analysis_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows that come from analyses."""
    return groups[~groups["condition"].isin([*CONDITIONS, AVERAGED, SUMMARY])]


def analysis_lines(groups: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Heading and cells for every headline metric of the analyses, at α = 1 where noise was scaled."""
    rows = analysis_rows(groups)
    rows = rows[rows["metric"].isin(HEADLINE_METRICS)]
    scaled = rows["metric"].isin(ALPHA_METRICS) & rows["strength"].notna() & (rows["condition"] != "mix")
    rows = rows[~scaled | (rows["strength"] == 1)]
    lines = []
    for metric in dict.fromkeys(rows["metric"]):
        metric_rows = rows[rows["metric"] == metric]
        for key in result_keys(metric_rows):
            hide_strength = key.strength is None or (metric in ALPHA_METRICS and key.condition != "mix")
            heading = f"{metric}, {key.condition}" + ("" if hide_strength else f", {key.strength:g}")
            lines.append((heading, _cells(key.select(metric_rows), model_names(rows), format_number)))
    return lines


class TableLine(NamedTuple):
    """A line of a table: a metric at one key, with one cell per name."""

    key: ResultKey
    metric: str
    cells: list[str]

    @property
    def heading(self) -> str:
        has_own_heading = self.metric == "top1" or self.key.condition in (AVERAGED, SUMMARY)
        return self.key.heading if has_own_heading else f"{self.key.heading}, {self.metric.replace('_', ' ')}"


def main_lines(groups: pd.DataFrame) -> list[TableLine]:
    """The lines of the main table."""
    shown = main_rows(groups)
    lines = []
    for key in result_keys(shown):
        rows = key.select(shown)
        for metric in dict.fromkeys(rows["metric"]):
            cells = _cells(rows[rows["metric"] == metric], model_names(shown), format_percent)
            lines.append(TableLine(key, metric, cells))
    return lines


def metric_lines(groups: pd.DataFrame, metric: str) -> list[tuple[str, list[str]]]:
    """Heading and cells of every line of one metric's table."""
    rows = groups[groups["metric"] == metric]
    names = model_names(rows)
    return [(key.heading, _cells(key.select(rows), names, format_number)) for key in result_keys(rows)]


def _cells(rows: pd.DataFrame, names: list[str], format_cell: Callable[[Any], str]) -> list[str]:
    """One cell per name; `-` for missing numbers."""
    by_name = {row["name"]: format_cell(row) for row in rows.to_dict("records")}
    return [by_name.get(name, "-") for name in names]


def format_percent(row: Any) -> str:
    """A fraction in percent with its interval: ± for Student's t, brackets for the bootstrap."""
    return _format_interval(row, 100, ".1f")


def format_number(row: Any) -> str:
    """A number with its interval, as in `format_percent`."""
    return _format_interval(row, 1, ".3f")


def _format_interval(row: Any, factor: float, spec: str) -> str:
    value, low, high = (factor * float(row[key]) for key in ("value", "low", "high"))
    if pd.isna(value):
        return "-"
    if pd.isna(low) or pd.isna(high):
        return f"{value:{spec}}"
    is_symmetric = abs((high - value) - (value - low)) <= 1e-6 * abs(high - low)
    if row["over"] in ("seeds", "noises") and is_symmetric:
        return f"{value:{spec}} ± {high - value:{spec}}"
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


def run_counts(groups: pd.DataFrame) -> list[str]:
    """Number of runs of every name."""
    return [str(int(groups[groups["name"] == name]["runs"].max())) for name in model_names(groups)]


def caption(rows: pd.DataFrame, groups: pd.DataFrame) -> str:
    """Caption of the main table: unit, number of images, kind of interval."""
    rows, groups = main_rows(rows), main_rows(groups)
    if rows.empty:
        return "no accuracies: this suite has analyses only"
    counts = dict.fromkeys(f"{int(n):,}" for n in (rows["n"].min(), rows["n"].max()))
    intervals = {"seeds": "± 95 % interval over seeds (t)", "images": "[95 % interval over images]"}
    shown = [text for kind, text in intervals.items() if groups[groups["over"] == kind]["low"].notna().any()]
    images = VALIDATION_NOTE if rows["notes"].astype(str).str.contains(VALIDATION_NOTE).any() else "test images"
    return "; ".join([f"top-1 in %, {' to '.join(counts)} {images}", *([", ".join(shown)] if shown else [])])


def note_lines(rows: pd.DataFrame) -> list[str]:
    """Notes as lines of text, with the paragraph of the documentation that explains them."""
    return [str(note) for note in find_notes(rows)]


def markdown(rows: pd.DataFrame, groups: pd.DataFrame, missing: Sequence[str] = ()) -> str:
    """The main table as Markdown, with its notes and a line for every missing data set; then the analyses."""
    shown = main_rows(groups)
    text = caption(rows, groups) + "\n\n"
    if len(shown):
        body = [["runs", *run_counts(shown)], *([line.heading, *line.cells] for line in main_lines(groups))]
        text += _markdown_table(model_names(shown), body)
    text += "".join(f"\n{markdown_text(line)}\n" for line in [*note_lines(rows), *missing])
    if lines := analysis_lines(groups):
        body = [[heading, *cells] for heading, cells in lines]
        text += f"\n{analysis_caption(rows)}\n\n" + _markdown_table(model_names(analysis_rows(groups)), body)
    return text


def _markdown_table(columns: list[str], body: list[list[str]]) -> str:
    names = [markdown_text(name) for name in columns]
    lines = [["", *names], ["---", *["---:"] * len(columns)], *([markdown_text(line[0]), *line[1:]] for line in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def analysis_caption(rows: pd.DataFrame) -> str:
    """Caption of the table of analyses."""
    images = int(analysis_rows(rows)["n"].max())
    return f"nullspace noise, on {images:,} images not used to learn it; 95 % interval (t) over noises, or seeds"


def terminal_tables(groups: pd.DataFrame) -> list[Table]:
    """The main table and the table of analyses for a terminal, as far as the suite has them."""
    shown = main_rows(groups)
    tables = []
    if len(shown):
        tables.append(_terminal_table(model_names(shown)))
        tables[-1].add_row("runs", *run_counts(shown), end_section=True)
        _add_rows(tables[-1], [(line.heading, line.cells) for line in main_lines(groups)])
    if lines := analysis_lines(groups):
        tables.append(_terminal_table(model_names(analysis_rows(groups))))
        _add_rows(tables[-1], lines)
    return tables


def _terminal_table(columns: list[str]) -> Table:
    table = Table()
    table.add_column("")
    for column in columns:
        table.add_column(Text(column), justify="right")
    return table


def _add_rows(table: Table, lines: list[tuple[str, list[str]]]) -> None:
    """Add rows of plain text: brackets in names and intervals are no markup."""
    for heading, cells in lines:
        table.add_row(Text(heading), *map(Text, cells))
