"""How tables read: a row per benchmark and strength, a column per name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table

from nsaug.data.datamodule import VALIDATION_NOTE
from nsaug.evaluation.benchmarks import CONDITIONS
from nsaug.evaluation.corruption_error import ERRORS, SUMMARY
from nsaug.evaluation.reporting.aggregate import SCORE

SCALED = ("influence", "agreement", "confidence_change", "feature_change", "rms", "unreachable_energy")
"""What analyses measure of a noise at each α."""
FOREMOST = ("converged", "rms", "influence", "agreement", "radius", "nullity")
"""What is shown where there is no room for all metrics."""


class Place(NamedTuple):
    """A benchmark at one strength: what a row of a table stands for."""

    benchmark: str
    condition: str
    strength: float | None

    @property
    def heading(self) -> str:
        """In words; the radius of an attack in grey levels of 8-bit images where it is a whole number of them."""
        if self.condition not in (*CONDITIONS, SUMMARY):
            return f"{self.benchmark}: {self.condition}" + ("" if self.strength is None else f" {self.strength:g}")
        if self.strength is None:
            return self.benchmark
        levels = 255 * self.strength
        grey = self.condition == "attacked" and levels < 255 and abs(levels - round(levels)) < 1e-6
        return f"{self.benchmark} {round(levels)}/255" if grey else f"{self.benchmark} {self.strength:g}"

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that are of this place."""
        here = frame["strength"].isna() if self.strength is None else frame["strength"] == self.strength
        return frame[(frame["benchmark"] == self.benchmark) & (frame["condition"] == self.condition) & here]


def places(frame: pd.DataFrame) -> list[Place]:
    """In the order of the suite, what stands for several benchmarks last."""
    columns = (frame[key].tolist() for key in Place._fields)
    found = [Place(b, c, None if pd.isna(s) else float(s)) for b, c, s in zip(*columns, strict=True)]
    return sorted(dict.fromkeys(found), key=lambda place: place.condition == SUMMARY)


def names(frame: pd.DataFrame) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(frame["name"]))


def headline(groups: pd.DataFrame) -> pd.DataFrame:
    """Top-1, the score and the errors over all corruptions: what the main table shows."""
    return groups[groups["metric"].isin(["top1", SCORE, *ERRORS])]


def findings(groups: pd.DataFrame) -> pd.DataFrame:
    """What analyses found."""
    return groups[~groups["condition"].isin([*CONDITIONS, SUMMARY])]


def noise_lines(groups: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[tuple[str, list[str]]]:
    """The numbers of analyses that stand for the others: those at α = 1, and those that have no α; of some metrics."""
    own = findings(groups)
    own = own[own["metric"].isin(metrics)] if metrics else own
    scaled = own["metric"].isin(SCALED) & own["strength"].notna() & (own["condition"] != "mix")
    own = own[~scaled | (own["strength"] == 1)]
    lines = []
    for metric in dict.fromkeys(own["metric"]):
        of_metric = own[own["metric"] == metric]
        who = dict.fromkeys(names(own), "-")
        for place in places(of_metric):
            cells = {row["name"]: number(row) for row in place.of(of_metric).to_dict("records")}
            bare = place.strength is None or (metric in SCALED and place.condition != "mix")
            heading = f"{metric}, {place.condition}" + ("" if bare else f", {place.strength:g}")
            lines.append((heading, list((who | cells).values())))
    return lines


def grid(groups: pd.DataFrame, show: Callable[[pd.Series], str]) -> list[tuple[Place, list[str]]]:
    """A row of texts for each place, one for each name, `-` where there is no number."""
    lines = []
    for place in places(groups):
        own = place.of(groups)
        cells = [own[own["name"] == name] for name in names(groups)]
        lines.append((place, [show(found.iloc[0]) if len(found) else "-" for found in cells]))
    return lines


def percent(row: Any) -> str:
    """A share in percent with its interval: ± over seeds, which is symmetric, brackets over images."""
    return _with_interval(row, 100, ".1f")


def number(row: Any) -> str:
    """A number as it is, likewise."""
    return _with_interval(row, 1, ".3f")


def _with_interval(row: Any, factor: float, form: str) -> str:
    value, low, high = (factor * float(row[key]) for key in ("value", "low", "high"))
    if pd.isna(low):
        return f"{value:{form}}"
    return (
        f"{value:{form}} ± {high - value:{form}}"
        if row["over"] in ("seeds", "noises")
        else f"{value:{form}} [{low:{form}}, {high:{form}}]"
    )


def runs(groups: pd.DataFrame) -> list[str]:
    """How many runs stand behind each name."""
    return [str(int(groups[groups["name"] == name]["runs"].max())) for name in names(groups)]


def caption(rows: pd.DataFrame, groups: pd.DataFrame) -> str:
    """What the numbers of the main table are."""
    rows, groups = headline(rows), headline(groups)
    if rows.empty:
        return "no accuracies: this suite holds analyses alone"
    counts = dict.fromkeys(str(int(n)) for n in (rows["n"].min(), rows["n"].max()))
    over = [kind for kind in ("seeds", "images") if kind in set(groups["over"])]
    spread = {"seeds": "± 95 % interval over seeds (t)", "images": "[95 % interval over images (bootstrap)]"}
    judged = VALIDATION_NOTE if rows["notes"].astype(str).str.contains(VALIDATION_NOTE).any() else "test images"
    return f"top-1 in %, {' to '.join(counts)} {judged}; {', '.join(spread[kind] for kind in over)}"


def remark_lines(rows: pd.DataFrame) -> list[str]:
    """What has to be known of the images behind the numbers: each remark after the benchmarks that it is of."""
    found: dict[str, dict[str, None]] = {}
    told = rows[["benchmark", "notes"]].dropna().drop_duplicates()
    for benchmark, notes in told.itertuples(index=False):
        for remark in filter(None, notes.split("; ")):
            found.setdefault(remark, {})[benchmark] = None
    everything = set(rows["benchmark"]) - {SCORE}
    return [
        ("all" if len(everything) > 1 and set(of) == everything else ", ".join(of)) + f": {remark}"
        for remark, of in found.items()
    ]


def markdown(rows: pd.DataFrame, groups: pd.DataFrame, absent: Sequence[str] = ()) -> str:
    """The main table as Markdown, with what has to be known of the images, and of those that are not there."""
    shown = headline(groups)
    body = [["runs", *runs(shown)], *([place.heading, *cells] for place, cells in grid(shown, percent))]
    lines = [["", *names(shown)], ["---", *["---:"] * len(names(shown))], *body]
    text = caption(rows, groups) + "\n\n" + _markdown(lines)
    text += "".join(f"\n{line}\n" for line in [*remark_lines(rows), *absent])
    if noise := noise_lines(groups, FOREMOST):
        who = names(findings(groups))
        text += f"\n{noise_caption(rows)}\n\n" + _markdown(
            [["", *who], ["---", *["---:"] * len(who)], *([heading, *cells] for heading, cells in noise)]
        )
    return text


def _markdown(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def noise_caption(rows: pd.DataFrame) -> str:
    """What the numbers of analyses are."""
    images = int(findings(rows)["n"].max())
    return f"nullspace noise, on {images} images that it was not learned on; ± 95 % interval (t) over noises, or seeds"


def terminal_tables(groups: pd.DataFrame) -> list[Table]:
    """The main table for a terminal, to stand below its caption, and the table of analyses, where there are some."""
    shown = headline(groups)
    tables = []
    if len(shown):
        tables.append(_table(names(shown)))
        tables[-1].add_row("runs", *runs(shown), end_section=True)
        for place, cells in grid(shown, percent):
            tables[-1].add_row(place.heading, *cells)
    if noise := noise_lines(groups, FOREMOST):
        tables.append(_table(names(findings(groups))))
        for heading, cells in noise:
            tables[-1].add_row(heading, *cells)
    return tables


def _table(columns: list[str]) -> Table:
    table = Table()
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    return table
