"""Names from a stranger's files break no output format."""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from nsaug.evaluation import AnalysisResult, BenchmarkResult, Measurement
from nsaug.evaluation.reporting import sections
from nsaug.evaluation.reporting.aggregate import aggregate_seeds
from nsaug.evaluation.reporting.formatting import caption, note_lines, terminal_tables
from nsaug.evaluation.reporting.report import write_report
from nsaug.evaluation.reporting.text import csv_cell, shorten
from nsaug.utils.text import printable
from tests.evaluation.conftest import make_model, make_result
from tests.evaluation.test_report import BalancedParser

NAMES = {
    "brackets": "[bold]a[/bold] [/] [red",
    "formula": "$\\frac{ $x$ \\",
    "nul": "a\0b",
    "surrogate": "a\udc80b",
    "newline": "a\nb\r\n# c",
    "pipe": "a | b | c",
    "script": "<script>alert(1)</script>",
    "comment": "--> ]]> <b>",
    "cell": "=cmd|'/c calc'!A1",
    "at": "@SUM(1)",
    "underscore": "_hidden",
    "escape": "a\x1b[31mb",
    "direction": "a\u202eb",
    "long": "very long name " * 20,
    "empty": "",
}


def hostile_results(name):
    """Two models with this text wherever a name can stand."""
    results = []
    for prefix in ("", "b"):
        settings = {"nullspace": {"eps": 0.03}, name or "x": prefix + name}
        model = dataclasses.replace(make_model(prefix + name, method=name, settings=settings), checkpoint=prefix + name)
        own = [make_result(model, 0.9, name), make_result(model, 0.5, name + "c", 1.0, "corrupted")]
        own += [make_result(model, 0.5, name + "a", strength, "attacked") for strength in (0.1, 0.2)]
        for result in own:
            output = dataclasses.replace(result.output, ids=[name + i for i in result.output.ids], notes=(name,))
            results.append(dataclasses.replace(result, output=output, class_names=[name] * 10))
        measurements = [Measurement(name, 1.0, metric, 0, 0.5) for metric in (name, "rms")]
        analysis = AnalysisResult(measurements, ["a", "b"], [name], [np.zeros((8, 8, 3), np.uint8)], notes=(name,))
        results.append(BenchmarkResult(model, name + "n", None, "analyzed", analysis))
        results.append(BenchmarkResult(model, name + "f", 1.0, "attacked", None, failure=name))
    return results


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.filterwarnings("error")
def test_names_break_no_format(name, tmp_path):
    rows = write_report(hostile_results(name), {name: 1}, {"suite": name, name: name}, tmp_path, [name])
    shown = printable(name)

    with open(tmp_path / "results.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(rows)
    assert {row["name"] for row in cells} == {csv_cell(shown), csv_cell("b" + shown)}
    assert not any(
        cell.startswith(("=", "+", "-", "@", "\t")) and not is_number(cell) for row in cells for cell in row.values()
    )

    assert {row["name"] for row in json.loads((tmp_path / "results.json").read_text())} == {shown, "b" + shown}

    lines = (tmp_path / "results.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4}, "all rows have two models"
    assert not re.search("<script|<b>", "\n".join(lines))

    groups = aggregate_seeds(rows)
    console = Console(file=io.StringIO(), width=2000)
    console.print(caption(rows, groups), *terminal_tables(groups), *note_lines(rows), markup=False)
    assert shown in console.file.getvalue()
    assert not re.search(r"[\0\x1b\ud800-\udfff]", console.file.getvalue())

    parser = BalancedParser()
    parser.feed(page := (tmp_path / "report.html").read_text())
    assert parser.open == []
    assert "script" not in parser.seen
    assert not re.search(r"[\0\x1b\u202e\ud800-\udfff]", page)
    assert (tmp_path / "results.png").stat().st_size > 1000


def is_number(cell):
    return re.fullmatch(r"[+-]?[\d.]+(e-?\d+)?", cell) is not None


def test_printable():
    assert printable("Größe ε, 日本 🐈‍⬛") == "Größe ε, 日本 🐈‍⬛", "ordinary text is unchanged"
    assert printable("a\0\n\udc80\u202e") == "a\\x00\\n\\udc80\\u202e"
    assert printable(printable("a\n")) == "a\\n"


def test_numbers_are_no_formulas():
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("-1.5") == "'-1.5"


def test_shorten():
    assert shorten("short") == "short"
    assert len(shorten("x" * 99)) <= 40


def test_readable_class_names():
    assert sections.readable_names(("n01440764", "cat", "n02123045")) == ("tench", "cat", "tabby")
