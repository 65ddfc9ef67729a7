"""Notes on results, below the tables and in the report, with the paragraphs of the documentation that explain them."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nsaug.evaluation.reporting.aggregate import split_notes
from nsaug.evaluation.results import SUMMARY

DOCS = "docs/evaluation.md"
"""The page that explains notes, from the root of the repository."""
ANCHORS = {
    r"may overestimate this model's robustness": "masked-gradients",
    r"cannot be read": "unreadable-images",
    r"^generated on the fly$": "generated-on-the-fly",
    r"order of (the )?classes": "order-of-classes",
    r"drawn with seed|^[\d,]+ images of the [\d,]+ in ": "subsets",
    r"^predictions restricted to": "restricted-classes",
    r"images are there$|have no images|have no label": "incomplete-data",
    r"^resized from": "resized-images",
    r"^validation images$": "validation-images",
    r"^expected robustness over": "expected-robustness",
}
"""Paragraphs of DOCS by a pattern of their notes."""
MAX_BENCHMARKS = 4
"""A line names that many benchmarks at most."""


class Note(NamedTuple):
    """A remark on results.

    Attributes:
        scope: the benchmarks that it applies to, and the models if it does not apply to all.
        text: the remark.
        anchor: of the paragraph of DOCS that explains it; None if there is none.
    """

    scope: str
    text: str
    anchor: str | None

    def __str__(self) -> str:
        reference = f" ({DOCS}#{self.anchor})" if self.anchor else ""
        return f"{self.scope}: {self.text}{reference}"


def find_notes(rows: pd.DataFrame) -> list[Note]:
    """Notes of a table of `aggregate.tabulate`, one for every text.

    Such as subset sizes, unreadable images, and attacks that may overestimate robustness.
    """
    cells = rows[["name", "benchmark", "condition", "notes"]].dropna(subset="notes").drop_duplicates()
    scopes: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, benchmark, _, notes in cells.itertuples(index=False):
        for text in split_notes(notes):
            benchmarks, names = scopes.setdefault(text, ({}, {}))
            benchmarks[benchmark] = names[name] = None
    everything = set(rows[rows["condition"] != SUMMARY]["benchmark"])
    all_names = set(rows["name"])
    return [
        Note(_scope(list(benchmarks), everything) + _of_models(list(names), all_names), text, find_anchor(text))
        for text, (benchmarks, names) in scopes.items()
    ]


def _scope(benchmarks: list[str], everything: set[str]) -> str:
    if len(everything) > 1 and everything.issubset(benchmarks):
        return "all"
    if len(benchmarks) > MAX_BENCHMARKS:
        return f"{', '.join(benchmarks[: MAX_BENCHMARKS - 1])} and {len(benchmarks) - MAX_BENCHMARKS + 1} more"
    return ", ".join(benchmarks)


def _of_models(names: list[str], all_names: set[str]) -> str:
    if len(names) == len(all_names):
        return ""
    return f" of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def find_anchor(text: str) -> str | None:
    return next((anchor for pattern, anchor in ANCHORS.items() if re.search(pattern, text)), None)


def docs_link(anchor: str, folder: Path) -> str | None:
    """Relative address of a paragraph of DOCS from a folder inside the repository; None elsewhere."""
    root, folder = Path(__file__).resolve().parents[3], folder.resolve()
    is_inside = folder.is_relative_to(root) and (root / DOCS).is_file()
    return f"{os.path.relpath(root / DOCS, folder)}#{anchor}" if is_inside else None
