"""The tidy table and what is drawn from it."""

from pathlib import Path

import matplotlib
import pandas as pd
from rich.table import Table

from nsaug.checkpoints import written_whole

matplotlib.use("agg")
import matplotlib.pyplot as plt

COLUMNS = [
    "checkpoint",
    "name",
    "method",
    "seed",
    "benchmark",
    "condition",
    "strength",
    "metric",
    "value",
    "n",
]


def write(rows: pd.DataFrame, folder: Path) -> None:
    """results.csv and results.json: the rows, as they are."""
    with written_whole(folder / "results.csv") as draft:
        rows.to_csv(draft, index=False)
    with written_whole(folder / "results.json") as draft:
        rows.to_json(draft, orient="records", indent=1)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds of each name at each benchmark's strength.

    Returns:
        Columns name, benchmark, strength, mean and std (in [0, 1]; the sample standard deviation, NaN for one run),
        runs; names and benchmarks in the order of the rows.
    """
    grouped = rows.groupby(["name", "benchmark", "strength"], dropna=False, sort=False)["value"]
    return grouped.agg(mean="mean", std="std", runs="count").reset_index()


def terminal_table(rows: pd.DataFrame) -> Table:
    """Top-1 in percent: a row per name, a column per benchmark and strength; ± is the standard deviation over seeds."""
    summary = summarise(rows)
    images = sorted({int(n) for n in rows["n"]})
    runs = sorted({int(count) for count in summary["runs"]})
    spread = "; mean ± standard deviation over seeds" if runs[-1] > 1 else ""
    counts = " to ".join(dict.fromkeys((str(images[0]), str(images[-1]))))
    table = Table(title=f"top-1 in %, {counts} test images{spread}", title_justify="left")
    table.add_column("model")
    table.add_column("runs", justify="right")
    conditions = _unique_conditions(summary)
    for benchmark, strength in conditions:
        table.add_column(_heading(benchmark, strength), justify="right", no_wrap=True)
    for name in dict.fromkeys(summary["name"]):
        own = summary[summary["name"] == name]
        cells = [_cell(own, benchmark, strength) for benchmark, strength in conditions]
        table.add_row(name, str(int(own["runs"].max())), *cells)
    return table


def _unique_conditions(summary: pd.DataFrame) -> list[tuple[str, float | None]]:
    pairs = zip(summary["benchmark"].tolist(), summary["strength"].tolist(), strict=True)
    return list(dict.fromkeys((name, None if pd.isna(strength) else float(strength)) for name, strength in pairs))


def _at(summary: pd.DataFrame, benchmark: str, strength: float | None) -> pd.DataFrame:
    of = summary["strength"].isna() if strength is None else summary["strength"] == strength
    return summary[(summary["benchmark"] == benchmark) & of]


def _cell(summary: pd.DataFrame, benchmark: str, strength: float | None) -> str:
    found = _at(summary, benchmark, strength)
    if found.empty:
        return "-"
    mean, std = 100 * found["mean"].iloc[0], 100 * found["std"].iloc[0]
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def _heading(benchmark: str, strength: float | None) -> str:
    if strength is None:
        return benchmark
    levels = strength * 255
    grey = abs(levels - round(levels)) < 1e-6 and benchmark != "gaussian_noise"
    return f"{benchmark}\n{round(levels)}/255" if grey else f"{benchmark}\n{strength:g}"


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Top-1 at every benchmark and strength, a colour per name, bars of one standard deviation over seeds."""
    summary = summarise(rows)
    conditions = _unique_conditions(summary)
    names = list(dict.fromkeys(summary["name"]))
    figure, axes = plt.subplots(figsize=(1.2 + 1.1 * len(conditions), 3.8), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        own = [_at(summary[summary["name"] == name], *condition) for condition in conditions]
        heights = [100 * found["mean"].iloc[0] if len(found) else float("nan") for found in own]
        spreads = [100 * found["std"].fillna(0).iloc[0] if len(found) else 0.0 for found in own]
        positions = [x + (place - (len(names) - 1) / 2) * width for x in range(len(conditions))]
        axes.bar(positions, heights, width, yerr=spreads, capsize=2, label=name)
    axes.set_xticks(range(len(conditions)), [_heading(*condition) for condition in conditions])
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=len(names), frameon=False)
    with written_whole(path) as draft:
        figure.savefig(draft, dpi=120, format="png")
    plt.close(figure)
