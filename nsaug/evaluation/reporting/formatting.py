"""Formatting of result tables: one row per benchmark and strength, one column per model name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table

from nsaug.data.datamodule import VALIDATION_NOTE
from nsaug.evaluation.benchmarks import CONDITIONS
from nsaug.evaluation.corruption_error import ERRORS, SUMMARY
from nsaug.evaluation.reporting.aggregate import SCORE

ALPHA_METRICS = ("influence", "agreement", "confidence_change", "feature_change", "rms", "unreachable_energy")
"""Metrics that analyses measure at every scale α of a noise."""
HEADLINE_METRICS = ("converged", "rms", "influence", "agreement", "radius", "nullity")
"""Metrics of analyses in the terminal, in results.md and in the report's main tables."""


class ResultKey(NamedTuple):
    """A benchmark at one strength: the key of a table row."""

    benchmark: str
    condition: str
    strength: float | None

    @property
    def heading(self) -> str:
        """Row heading; an attack's radius in 1/255 if it is a whole number of them."""
        if self.condition not in (*CONDITIONS, SUMMARY):
            return f"{self.benchmark}: {self.condition}" + ("" if self.strength is None else f" {self.strength:g}")
        if self.strength is None:
            return self.benchmark
        levels = 255 * self.strength
        is_whole = self.condition == "attacked" and levels < 255 and abs(levels - round(levels)) < 1e-6
        return f"{self.benchmark} {round(levels)}/255" if is_whole else f"{self.benchmark} {self.strength:g}"

    def select(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a table that have this key."""
        same = frame["strength"].isna() if self.strength is None else frame["strength"] == self.strength
        return frame[(frame["benchmark"] == self.benchmark) & (frame["condition"] == self.condition) & same]


def result_keys(frame: pd.DataFrame) -> list[ResultKey]:
    """Distinct keys in the order of the suite, summaries last."""
    columns = (frame[key].tolist() for key in ResultKey._fields)
    keys = [ResultKey(b, c, None if pd.isna(s) else float(s)) for b, c, s in zip(*columns, strict=True)]
    return sorted(dict.fromkeys(keys), key=lambda key: key.condition == SUMMARY)


def model_names(frame: pd.DataFrame) -> list[str]:
    """Distinct names in the order of the rows."""
    return list(dict.fromkeys(frame["name"]))


def main_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main table: top-1, the score and the errors over all corruptions."""
    return groups[groups["metric"].isin(["top1", SCORE, *ERRORS])]


def analysis_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows that come from analyses."""
    return groups[~groups["condition"].isin([*CONDITIONS, SUMMARY])]


def analysis_lines(groups: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Heading and cells for every headline metric of the analyses, at α = 1 where noise was scaled."""
    rows = analysis_rows(groups)
    rows = rows[rows["metric"].isin(HEADLINE_METRICS)]
    scaled = rows["metric"].isin(ALPHA_METRICS) & rows["strength"].notna() & (rows["condition"] != "mix")
    rows = rows[~scaled | (rows["strength"] == 1)]
    lines = []
    for metric in dict.fromkeys(rows["metric"]):
        metric_rows = rows[rows["metric"] == metric]
        empty = dict.fromkeys(model_names(rows), "-")
        for key in result_keys(metric_rows):
            cells = {row["name"]: format_number(row) for row in key.select(metric_rows).to_dict("records")}
            hide_strength = key.strength is None or (metric in ALPHA_METRICS and key.condition != "mix")
            heading = f"{metric}, {key.condition}" + ("" if hide_strength else f", {key.strength:g}")
            lines.append((heading, list((empty | cells).values())))
    return lines


def table_lines(groups: pd.DataFrame, format_cell: Callable[[pd.Series], str]) -> list[tuple[ResultKey, list[str]]]:
    """A row of cells for every key, one cell per name; `-` for missing numbers."""
    lines = []
    for key in result_keys(groups):
        rows = key.select(groups)
        cells = [rows[rows["name"] == name] for name in model_names(groups)]
        lines.append((key, [format_cell(cell.iloc[0]) if len(cell) else "-" for cell in cells]))
    return lines


def format_percent(row: Any) -> str:
    """A fraction in percent with its interval: ± for Student's t, brackets for the bootstrap."""
    return _format_interval(row, 100, ".1f")


def format_number(row: Any) -> str:
    """A number with its interval, as in `format_percent`."""
    return _format_interval(row, 1, ".3f")


def _format_interval(row: Any, factor: float, spec: str) -> str:
    value, low, high = (factor * float(row[key]) for key in ("value", "low", "high"))
    if pd.isna(low):
        return f"{value:{spec}}"
    if row["over"] in ("seeds", "noises"):
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
    counts = dict.fromkeys(str(int(n)) for n in (rows["n"].min(), rows["n"].max()))
    intervals = {"seeds": "± 95 % interval over seeds (t)", "images": "[95 % interval over images (bootstrap)]"}
    shown = [text for kind, text in intervals.items() if kind in set(groups["over"])]
    images = VALIDATION_NOTE if rows["notes"].astype(str).str.contains(VALIDATION_NOTE).any() else "test images"
    return f"top-1 in %, {' to '.join(counts)} {images}; {', '.join(shown)}"


def note_lines(rows: pd.DataFrame) -> list[str]:
    """Notes on the images, such as subset sizes and unreadable images, after the benchmarks they apply to."""
    benchmarks_by_note: dict[str, dict[str, None]] = {}
    for benchmark, notes in rows[["benchmark", "notes"]].dropna().drop_duplicates().itertuples(index=False):
        for note in filter(None, notes.split("; ")):
            benchmarks_by_note.setdefault(note, {})[benchmark] = None
    everything = set(rows["benchmark"]) - {SCORE}
    return [
        ("all" if len(everything) > 1 and set(benchmarks) == everything else ", ".join(benchmarks)) + f": {note}"
        for note, benchmarks in benchmarks_by_note.items()
    ]


def markdown(rows: pd.DataFrame, groups: pd.DataFrame, missing: Sequence[str] = ()) -> str:
    """The main table as Markdown, with its notes and a line for every missing data set; then the analyses."""
    shown = main_rows(groups)
    body = [["runs", *run_counts(shown)]]
    body += [[key.heading, *cells] for key, cells in table_lines(shown, format_percent)]
    text = caption(rows, groups) + "\n\n" + _markdown_table(model_names(shown), body)
    text += "".join(f"\n{line}\n" for line in [*note_lines(rows), *missing])
    if lines := analysis_lines(groups):
        body = [[heading, *cells] for heading, cells in lines]
        text += f"\n{analysis_caption(rows)}\n\n" + _markdown_table(model_names(analysis_rows(groups)), body)
    return text


def _markdown_table(columns: list[str], body: list[list[str]]) -> str:
    lines = [["", *columns], ["---", *["---:"] * len(columns)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def analysis_caption(rows: pd.DataFrame) -> str:
    """Caption of the table of analyses."""
    images = int(analysis_rows(rows)["n"].max())
    return f"nullspace noise, on {images} images not used to learn it; ± 95 % interval (t) over noises, or seeds"


def terminal_tables(groups: pd.DataFrame) -> list[Table]:
    """The main table and the table of analyses for a terminal, as far as the suite has them."""
    shown = main_rows(groups)
    tables = []
    if len(shown):
        tables.append(_terminal_table(model_names(shown)))
        tables[-1].add_row("runs", *run_counts(shown), end_section=True)
        for key, cells in table_lines(shown, format_percent):
            tables[-1].add_row(key.heading, *cells)
    if lines := analysis_lines(groups):
        tables.append(_terminal_table(model_names(analysis_rows(groups))))
        for heading, cells in lines:
            tables[-1].add_row(heading, *cells)
    return tables


def _terminal_table(columns: list[str]) -> Table:
    table = Table()
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
