"""How tables read: a row per benchmark and strength, a column per name."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from rich.table import Table

from nsaug.evaluation.table import SCORE


class Place(NamedTuple):
    """A benchmark at one strength: what a row of a table stands for."""

    benchmark: str
    condition: str
    strength: float | None

    @property
    def heading(self) -> str:
        """In words; the radius of an attack in grey levels of 8-bit images where it is a whole number of them."""
        if self.strength is None:
            return self.benchmark
        levels = 255 * self.strength
        grey = self.condition == "attacked" and levels <= 255 and abs(levels - round(levels)) < 1e-6
        return f"{self.benchmark} {round(levels)}/255" if grey else f"{self.benchmark} {self.strength:g}"

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that are of this place."""
        here = frame["strength"].isna() if self.strength is None else frame["strength"] == self.strength
        return frame[(frame["benchmark"] == self.benchmark) & here]


def places(frame: pd.DataFrame) -> list[Place]:
    """In the order of the suite, the score last."""
    columns = (frame[key].tolist() for key in Place._fields)
    found = [Place(b, c, None if pd.isna(s) else float(s)) for b, c, s in zip(*columns, strict=True)]
    return sorted(dict.fromkeys(found), key=lambda place: place.benchmark == SCORE)


def names(frame: pd.DataFrame) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(frame["name"]))


def headline(groups: pd.DataFrame) -> pd.DataFrame:
    """Top-1 and the score: what the main table shows."""
    return groups[groups["metric"].isin(["top1", SCORE])]


def grid(groups: pd.DataFrame, show: Callable[[pd.Series], str]) -> list[tuple[Place, list[str]]]:
    """A row of texts for each place, one for each name, `-` where there is no number."""
    lines = []
    for place in places(groups):
        own = place.of(groups)
        cells = [own[own["name"] == name] for name in names(groups)]
        lines.append((place, [show(found.iloc[0]) if len(found) else "-" for found in cells]))
    return lines


def percent(row: pd.Series) -> str:
    """A share in percent with its interval: ± over seeds, which is symmetric, brackets over images."""
    return _with_interval(row, 100, ".1f")


def number(row: pd.Series) -> str:
    """A number as it is, likewise."""
    return _with_interval(row, 1, ".3f")


def _with_interval(row: pd.Series, factor: float, form: str) -> str:
    value, low, high = (factor * float(row[key]) for key in ("value", "low", "high"))
    if pd.isna(low):
        return f"{value:{form}}"
    return (
        f"{value:{form}} ± {high - value:{form}}"
        if row["over"] == "seeds"
        else f"{value:{form}} [{low:{form}}, {high:{form}}]"
    )


def runs(groups: pd.DataFrame) -> list[str]:
    """How many runs stand behind each name."""
    return [str(int(groups[groups["name"] == name]["runs"].max())) for name in names(groups)]


def caption(rows: pd.DataFrame, groups: pd.DataFrame) -> str:
    """What the numbers of the main table are."""
    counts = dict.fromkeys(str(int(n)) for n in (rows["n"].min(), rows["n"].max()))
    over = [kind for kind in ("seeds", "images") if kind in set(groups["over"])]
    spread = {"seeds": "± 95 % interval over seeds (t)", "images": "[95 % interval over images (bootstrap)]"}
    return f"top-1 in %, {' to '.join(counts)} test images; {', '.join(spread[kind] for kind in over)}"


def markdown(rows: pd.DataFrame, groups: pd.DataFrame) -> str:
    """The main table as Markdown."""
    shown = headline(groups)
    body = [["runs", *runs(shown)], *([place.heading, *cells] for place, cells in grid(shown, percent))]
    lines = [["", *names(shown)], ["---", *["---:"] * len(names(shown))], *body]
    return caption(rows, groups) + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def terminal_table(groups: pd.DataFrame) -> Table:
    """The main table for a terminal, to stand below its caption."""
    shown = headline(groups)
    table = Table()
    table.add_column("")
    for name in names(shown):
        table.add_column(name, justify="right")
    table.add_row("runs", *runs(shown), end_section=True)
    for place, cells in grid(shown, percent):
        table.add_row(place.heading, *cells)
    return table
