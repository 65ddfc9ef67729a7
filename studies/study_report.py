"""What a study's results say: a line for each entry, the paper's claims, curves. Called by study.py, or alone:

    python benchmarks/study_report.py outputs/study/digits/confirm

Writes summary.md there, and for curves and radius the plots. Every interval is Student's t over seeds, 95 %, of
differences paired by seed where it is a difference.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from nsaug.evaluation.reporting.plots import colors
from nsaug.evaluation.statistics import Interval, t_interval

COLUMNS = {"clean": "clean images", "pgd": "PGD", "corrupted": "corruptions", "score": "score"}
ADVERSARIAL = ("fgsm_rs", "pgd", "pgd_3_steps", "trades")
RANDOM = ("random_noise", "random_noise_influence", "random_noise_start")
FAMILIES = ["nullspace noise", "random noise", "adversarial", "plain"]
SWEPT = {"eps": "ε", "limit": "limit", "steps": "K"}


def runs(folder: Path) -> pd.DataFrame:
    """Accuracies of each run in points: on clean images, under PGD, under corruptions, the summary score.

    Returns:
        Columns as in COLUMNS, indexed by (name, seed).
    """
    rows = pd.read_csv(folder / "results" / "results.csv")
    kind = rows["benchmark"].where(rows["benchmark"].isin(COLUMNS), "corrupted")
    rows = rows.assign(kind=kind)[rows["metric"].isin(["top1", "score"]) & (rows["over"] == "images")]
    return 100 * rows.pivot_table(index=["name", "seed"], columns="kind", values="value", sort=False)[list(COLUMNS)]


def finished(root: Path) -> list[Path]:
    """The folders of those stages whose models were judged on test images."""
    stages = (root / "confirm", root / "curves")
    return [folder for folder in stages if (folder / "results" / "results.csv").exists()]


def difference(table: pd.DataFrame, name: str, other: str, column: str) -> Interval:
    """How many points one entry lies above another, seed by seed."""
    return t_interval((table.loc[name, column] - table.loc[other, column]).dropna().to_numpy())


def shown(interval: Interval) -> str:
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def summary(table: pd.DataFrame) -> str:
    """A line for each entry, best first, and how it differs from plain finetuning."""
    names = table["score"].groupby("name").mean().sort_values(ascending=False).index
    lines = [
        f"top-1 in %, {len(table.loc['clean'])} seeds; in brackets 95 % intervals over seeds (t) of paired differences",
        "",
        f"| | {' | '.join(COLUMNS.values())} | score - clean's | clean images - clean's |",
        f"|---|{'---:|' * (len(COLUMNS) + 2)}",
    ]
    for name in names:
        means = [f"{table.loc[name, column].mean():.1f}" for column in COLUMNS]
        apart = ["", ""]
        if name != "clean":
            apart = [shown(difference(table, name, "clean", column)) for column in ("score", "clean")]
        lines.append(f"| {' | '.join([name, *means, *apart])} |")
    return "\n".join(lines)


def claims(table: pd.DataFrame) -> str:
    """The paper's claims about methods, each as the differences that speak for or against it."""
    told: list[tuple[str, str, Iterable[str], str]] = [
        ("better than plain finetuning", "nullspace", ("clean", "clean_two_views", "clean_same_compute"), "score"),
        ("and no worse on clean images", "nullspace", ("clean",), "clean"),
        ("the paper's recipe, likewise", "nullspace_paper", ("clean",), "score"),
        ("better than random noise", "nullspace", RANDOM, "score"),
        ("as robust as adversarial training", "nullspace", ADVERSARIAL, "score"),
        ("at less cost to clean images", "nullspace", ADVERSARIAL, "clean"),
    ]
    lines = ["| claim | difference in | | points | |", "|---|---|---|---:|---|"]
    for claim, name, others, column in told:
        for other in others:
            if {name, other} <= set(table.index.get_level_values("name")):
                found = difference(table, name, other, column)
                verdict = "higher" if found.low > 0 else "lower" if found.high < 0 else "within chance"
                lines.append(f"| {claim} | {COLUMNS[column]} | {name} - {other} | {shown(found)} | {verdict} |")
    return "\n".join(lines)


def family(name: str) -> str:
    if name.startswith("clean"):
        return "plain"
    return "adversarial" if name in ADVERSARIAL else "random noise" if name in RANDOM else "nullspace noise"


def swept(table: pd.DataFrame, key: str) -> list[tuple[float, str]]:
    """The values of a setting that curves have, the default's too, and the entries they belong to."""
    names = table.index.get_level_values("name").unique()
    default = OmegaConf.load(Path(__file__).parents[1] / "conf" / "nullspace" / "sample.yaml")[key]
    others = [(float(name.split("_")[-1]), name) for name in names if name.startswith(f"{key}_")]
    return sorted([*others, (float(default), "nullspace")])


def spreads(table: pd.DataFrame) -> str:
    """By how much the score depends on ε, limit and K: the two entries furthest apart.

    They are picked by the scores that they are compared on: the interval lies further from zero than one of entries
    named beforehand would.
    """
    lines = ["| setting | values | highest - lowest score | points |", "|---|---|---|---:|"]
    for key, label in SWEPT.items():
        found = swept(table, key)
        means = {name: table.loc[name, "score"].mean() for _, name in found}
        high, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        values = ", ".join(f"{value:g}" for value, _ in found)
        apart = shown(difference(table, high, low, "score"))
        lines.append(f"| {label} | {values} | {high} - {low} | {apart} |")
    return "\n".join(lines)


def figure(path: Path, panels: int, draw: Callable[[list[Any]], None]) -> None:
    page, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.4), layout="constrained", squeeze=False)
    draw(list(axes[0]))
    page.savefig(path, dpi=110)
    plt.close(page)


def beside(at: Any) -> None:
    at.legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")


def curves(table: pd.DataFrame, path: Path) -> None:
    """By how much accuracies lie above plain finetuning's, over ε, limit and K, with the intervals as bands."""

    def draw(axes: list[Any]) -> None:
        for at in axes[1:]:
            at.sharey(axes[0])
        for at, (key, label) in zip(axes, SWEPT.items(), strict=True):
            found = swept(table, key)
            x = [value for value, _ in found]
            for column, colour in colors(list(COLUMNS)).items():
                every = [difference(table, name, "clean", column) for _, name in found]
                at.plot(x, [each.value for each in every], "o-", markersize=4, color=colour, label=COLUMNS[column])
                at.fill_between(
                    x, [e.low for e in every], [e.high for e in every], color=colour, alpha=0.12, linewidth=0
                )
            at.axhline(0, color="grey", linewidth=1, linestyle="--")
            at.set_xscale("log")
            at.set_xticks(x, [f"{value:g}" for value in x])
            at.minorticks_off()
            at.set_xlabel(label)
        axes[0].set_ylabel("top-1 - plain finetuning's, points")
        beside(axes[-1])

    figure(path, len(SWEPT), draw)


def training(folder: Path, found: list[tuple[float, str]], path: Path) -> None:
    """Influence and norm of the noise over training, before refinement (dotted) and after, means over seeds."""

    def draw(axes: list[Any]) -> None:
        for (value, name), colour in zip(found, colors([name for _, name in found]).values(), strict=True):
            logs = [pd.read_csv(file) for file in sorted(folder.glob(f"{name}/seed*/metrics.csv"))]
            told = pd.concat(logs).groupby("step").mean(numeric_only=True)
            for at, what in zip(axes, ("influence", "noise_rms"), strict=True):
                for key, line in ((f"train/{what}_before", ":"), (f"train/{what}", "-")):
                    every = told[key].dropna()
                    at.plot(every.index, every, line, color=colour, label=f"ε {value:g}" if line == "-" else None)
        for at, label in zip(axes, ("influence", "rms of the noise"), strict=True):
            at.set_xlabel("step")
            at.set_ylabel(label)
        axes[0].set_yscale("log")
        beside(axes[1])

    figure(path, 2, draw)


def rank_correlation(both: pd.DataFrame, x: str, y: str) -> tuple[Interval, Interval]:
    """Spearman's coefficient over all runs, and over entries alone, the mean of the seeds.

    The runs of a seed have one start, so that seeds are what varies: the first interval is the jackknife's, leaving
    out one seed at a time (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 11), the second Student's t.
    """

    def coefficient(own: pd.DataFrame) -> float:
        return float(spearmanr(own[x], own[y]).statistic)

    seeds = both["seed"].unique()
    pooled, count = coefficient(both), len(seeds)
    left_out = np.array([coefficient(both[both["seed"] != seed]) for seed in seeds])
    spread = t_interval(count * pooled - (count - 1) * left_out)
    half = spread.high - spread.value
    around = Interval(pooled, max(-1.0, pooled - half), min(1.0, pooled + half))
    return around, t_interval(np.array([coefficient(own) for _, own in both.groupby("seed")]))


def radius(folder: Path, tables: list[pd.DataFrame]) -> str:
    """How large nullspace noise can be against how robust a run is: radius.png, and the rank correlations."""
    rows = pd.read_csv(folder / "results" / "results.csv")
    rows = rows[(rows["condition"] == "learned") & (rows["metric"] == "relative radius")]
    radii = rows.groupby(["name", "seed"])["value"].mean().rename("radius")
    every = pd.concat(tables)
    every = every[~every.index.duplicated()]  # stages share clean and nullspace
    both = every.join(radii, how="inner").reset_index()
    both["family"] = both["name"].map(family)
    means = both.groupby("name")[["radius", "pgd", "corrupted"]].mean().sort_values("radius", ascending=False)

    def draw(axes: list[Any]) -> None:
        for at, column in zip(axes, ("pgd", "corrupted"), strict=True):
            for name, colour in colors(FAMILIES).items():
                own = both[both["family"] == name]
                at.plot(own["radius"], own[column], "o", markersize=3, color=colour, label=name)
            at.set_xlabel("radius, in rms(u)")
            at.set_ylabel(f"top-1, %, {COLUMNS[column]}")
        beside(axes[1])

    figure(folder / "radius.png", 2, draw)
    lines = [
        f"Spearman's rank correlation of the radius with top-1; {len(both)} runs of {both['name'].nunique()} entries",
        "",
        "| | over all runs | over entries, mean of the seeds |",
        "|---|---:|---:|",
    ]
    for column in ("clean", "pgd", "corrupted"):
        told = [
            f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in rank_correlation(both, "radius", column)
        ]
        lines.append(f"| {COLUMNS[column]} | {' | '.join(told)} |")
    lines += ["", "means over seeds", "", "| | radius | PGD | corruptions |", "|---|---:|---:|---:|"]
    lines += [f"| {row.Index} | {row.radius:.2f} | {row.pgd:.1f} | {row.corrupted:.1f} |" for row in means.itertuples()]
    return "\n".join(lines)


def report(folder: Path) -> str:
    """Writes what there is to say of a stage into its folder, and returns summary.md's text."""
    if folder.name == "radius":
        judged = finished(folder.parent)
        if not judged:
            raise SystemExit(f"error: {folder} is of the models of confirm and curves, which are not beside it")
        parts = [radius(folder, [runs(other) for other in judged])]
    else:
        table = runs(folder)
        parts = [summary(table)]
        if folder.name == "confirm":
            parts.append(claims(table))
        if folder.name == "curves":
            parts.append(spreads(table))
            curves(table, folder / "curves.png")
            training(folder, swept(table, "eps"), folder / "training.png")
    text = "\n\n".join(parts) + "\n"
    (folder / "summary.md").write_text(text)
    return text


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "results" / "results.csv").exists():
        sys.exit(
            "error: name a finished stage of a study: python benchmarks/study_report.py outputs/study/digits/confirm"
        )
    print(report(Path(sys.argv[1])))
