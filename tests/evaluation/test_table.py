import io
import json

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from nsaug.evaluation import plot, summarise, terminal_table, write
from nsaug.evaluation.table import COLUMNS


@pytest.fixture
def rows():
    values = {"clean": [(None, 0.9), (4 / 255, 0.5)], "nullspace": [(None, 0.8), (4 / 255, 0.6)]}
    table = []
    for name, cells in values.items():
        for seed in range(2):
            for strength, value in cells:
                benchmark = "clean" if strength is None else "pgd"
                own = [
                    f"{name}{seed}",
                    name,
                    name,
                    seed,
                    benchmark,
                    "-",
                    strength,
                    "top1",
                    value + 0.02 * seed,
                    50,
                ]
                table.append(own)
    return pd.DataFrame(table, columns=COLUMNS)


def test_mean_and_standard_deviation_over_seeds(rows):
    summary = summarise(rows).set_index(["name", "benchmark"])
    assert summary.loc[("clean", "clean"), "mean"] == pytest.approx(0.91)
    assert summary.loc[("clean", "clean"), "std"] == pytest.approx(0.02 / 2**0.5)
    assert summary.loc[("nullspace", "pgd"), "runs"] == 2


def test_what_the_terminal_shows(rows):
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(rows))
    text = console.file.getvalue()
    for part in ("50 test images", "91.0 ± 1.4", "61.0 ± 1.4", "4/255", "pgd"):
        assert part in text
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(rows[rows["seed"] == 0]))
    assert "±" not in console.file.getvalue(), "one run has no spread"


def test_files_hold_the_rows(rows, tmp_path):
    write(rows, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), rows)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored[1] == {**rows.iloc[1].to_dict(), "strength": pytest.approx(4 / 255)}
    assert stored[0]["strength"] is None


def test_the_plot_is_a_picture(rows, tmp_path):
    plot(rows, tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width > 300
        assert len(picture.convert("RGB").getcolors(100000)) > 20
