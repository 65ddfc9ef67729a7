"""Tables and plots of a study. study.py calls it at the end of a stage; on its own:

    python studies/study_report.py outputs/study/digits/test           # writes summary.md and plots there
    python studies/study_report.py outputs/study/digits/test --save    # and studies/results/digits_test.csv
    python studies/study_report.py studies/results/digits_test.csv     # prints the tables of a saved CSV

Intervals are 95 % intervals over seeds (Student's t); differences are paired by seed.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from omegaconf import DictConfig, OmegaConf
from scipy.stats import spearmanr

from nsaug.evaluation.reporting.plots import colors
from nsaug.evaluation.statistics import Interval, t_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"

COLUMNS = [
    *("entry", "metric", "mean", "low", "high"),
    *("reference", "difference", "difference_low", "difference_high", "num_seeds"),
]
"""Of the table of a stage: the mean of an entry, and its difference to the entry `reference`, with their intervals.

Accuracies in points (%), the radius in rms(u), `CORRELATIONS` as they are.
"""
METRICS = {"clean": "clean images", "pgd": "PGD", "corruptions": "corruptions", "score": "score"}
BASELINE = "clean"
"""The entry that all others are compared with."""

PLAIN = ("clean", "clean_two_views", "clean_same_compute")
RANDOM = ("random_noise", "random_noise_influence", "random_noise_init")
ADVERSARIAL = ("fgsm_rs", "pgd", "pgd_3_steps", "trades")
CLAIMS = [
    ("better than plain finetuning", "nullspace", PLAIN, "score"),
    ("no worse on clean images", "nullspace", ("clean",), "clean"),
    ("the paper's recipe is better than plain finetuning", "nullspace_paper", ("clean",), "score"),
    ("better than random noise", "nullspace", RANDOM, "score"),
    ("as robust as adversarial training", "nullspace", ADVERSARIAL, "score"),
    ("at a lower cost on clean images", "nullspace", ADVERSARIAL, "clean"),
]
"""The paper's claims, and differences that test them: claim, entry, references, metric."""

SWEPT = {"eps": "ε", "init_scale": "init_scale", "num_steps": "K"}
"""Settings of nullspace noise in stage curves, and their names in tables and plots."""
CORRELATIONS = {"rank_correlation_of_runs": "all runs", "rank_correlation_of_entries": "entries, mean over seeds"}
"""Entries in the table of stage radius that hold correlations of a metric with the radius."""

Row = dict[str, Any]


def write_report(folder: Path, save: bool = False) -> str:
    """Write the summary and the plots of a stage.

    Args:
        folder: of the stage, such as outputs/study/digits/test.
        save: also write the table to studies/results.

    Returns:
        The text of summary.md.
    """
    folder = folder.resolve()
    stage = folder.name
    if stage == "radius":
        runs = read_radius_runs(folder)
        table = radius_table(runs)
        plot_radius(runs, folder / "radius.png")
    else:
        table = compare_runs(read_runs(folder), stage)
        if stage == "curves":
            plot_curves(table, folder / "curves.png")
            plot_training(folder, sweep_values(table["entry"], "eps"), folder / "training.png")
    text = to_markdown(table, stage)
    (folder / "summary.md").write_text(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        table.to_csv(RESULTS / f"{folder.parent.name}_{stage}.csv", index=False)
    return text


def default_settings() -> DictConfig:
    """The defaults of per-image nullspace noise."""
    config = OmegaConf.load(ROOT / "conf" / "nullspace" / "per_image.yaml")
    assert isinstance(config, DictConfig)
    return config


def finished_stages(root: Path) -> list[Path]:
    """Folders of the stages test and curves that have results."""
    return [root / stage for stage in ("test", "curves") if (root / stage / "results" / "results.csv").exists()]


# Tables


def read_runs(folder: Path) -> pd.DataFrame:
    """Accuracies of every run of a stage, in points.

    Returns:
        One column for each of METRICS, indexed by (name, seed); PGD and corruptions are means over strengths.
    """
    rows = pd.read_csv(folder / "results" / "results.csv")
    rows = rows[rows["metric"].isin(["top1", "score"]) & (rows["over"] == "images")]
    metric = rows["benchmark"].where(rows["benchmark"].isin(METRICS), "corruptions")
    runs = rows.drop(columns="metric").assign(metric=metric)
    return 100 * runs.pivot_table(index=["name", "seed"], columns="metric", values="value", sort=False)[list(METRICS)]


def compare_runs(runs: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The table of a stage, columns as in COLUMNS: every entry against BASELINE, then the other comparisons."""
    entries = list(runs.index.get_level_values("name").unique())
    comparisons = [(entry, metric, BASELINE) for entry in entries for metric in METRICS]
    if stage == "test":
        comparisons += [(entry, metric, reference) for _, entry, reference, metric in claims(entries)]
    if stage == "curves":
        scores = runs["score"].groupby("name").mean()
        comparisons += [(high, "score", low) for _, _, high, low in sweep_extremes(entries, scores)]
    rows = [compare(runs, *comparison) for comparison in dict.fromkeys(comparisons)]
    return to_table(rows)


def compare(runs: pd.DataFrame, entry: str, metric: str, reference: str) -> Row:
    """The mean of an entry over seeds, and its paired difference to another entry."""
    values = runs[metric].loc[entry]
    differences = (values - runs[metric].loc[reference]).dropna()
    difference = t_interval(differences.to_numpy())
    return make_row(entry, metric, t_interval(values.to_numpy()), len(differences)) | {
        "reference": reference,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def make_row(entry: str, metric: str, mean: Interval, num_seeds: int) -> Row:
    cells = {"mean": mean.value, "low": mean.low, "high": mean.high, "num_seeds": num_seeds}
    return {"entry": entry, "metric": metric, "reference": "", **cells}


def to_table(rows: list[Row]) -> pd.DataFrame:
    """A table with the precision of the saved CSV, so that both give the same text."""
    return pd.DataFrame(rows, columns=COLUMNS).round(4)


def read_table(file: Path) -> pd.DataFrame:
    """Read a table that `write_report` saved."""
    return pd.read_csv(file).fillna({"reference": ""})


def claims(entries: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """The comparisons of CLAIMS between these entries: claim, entry, reference, metric."""
    present = set(entries)
    return [
        (claim, entry, reference, metric)
        for claim, entry, references, metric in CLAIMS
        for reference in references
        if {entry, reference} <= present
    ]


def sweep_values(entries: Iterable[str], key: str) -> list[tuple[float, str]]:
    """The values of a setting in stage curves, ascending, with their entries; `nullspace` has the default."""
    others = [(float(entry.removeprefix(f"{key}_")), entry) for entry in set(entries) if entry.startswith(f"{key}_")]
    return sorted([*others, (float(default_settings()[key]), "nullspace")])


def sweep_extremes(
    entries: Iterable[str], scores: "pd.Series[float]"
) -> list[tuple[str, list[tuple[float, str]], str, str]]:
    """For every setting with several values: its name, its values, the entries with the highest and lowest score."""
    extremes = []
    for key in SWEPT:
        values = sweep_values(entries, key)
        names = [entry for _, entry in values]
        if len(names) > 1:
            extremes.append((key, values, max(names, key=scores.__getitem__), min(names, key=scores.__getitem__)))
    return extremes


def read_radius_runs(folder: Path) -> pd.DataFrame:
    """The radius of every run of stage radius, and its accuracies in the stage that trained it.

    Returns:
        Columns name, seed, radius (in rms(u)) and METRICS.
    """
    rows = pd.read_csv(folder / "results" / "results.csv")
    rows = rows[(rows["condition"] == "learned") & (rows["metric"] == "relative radius")]
    radii = rows.groupby(["name", "seed"])["value"].mean().rename("radius")
    stages = finished_stages(folder.parent)
    if not stages:
        raise SystemExit(f"error: {folder} needs the results of test or curves beside it: run one of these stages")
    runs = pd.concat([read_runs(stage) for stage in stages])
    runs = runs[~runs.index.duplicated()]  # both stages have clean and nullspace
    return runs.join(radii, how="inner").reset_index()


def radius_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of stage radius: means of every entry, largest radius first, and rank correlations."""
    rows = []
    for entry in runs.groupby("name")["radius"].mean().sort_values(ascending=False).index:
        entry_runs = runs[runs["name"] == entry]
        for metric in ("radius", *METRICS):
            rows.append(make_row(entry, metric, t_interval(entry_runs[metric].to_numpy()), len(entry_runs)))
    num_seeds = runs["seed"].nunique()
    for metric in METRICS:
        for entry, interval in zip(CORRELATIONS, rank_correlation(runs, "radius", metric), strict=True):
            rows.append(make_row(entry, metric, interval, num_seeds))
    return to_table(rows)


def rank_correlation(runs: pd.DataFrame, x: str, y: str) -> tuple[Interval, Interval]:
    """Spearman's rank correlation over all runs, and over the entries of one seed, as a mean over seeds.

    The runs of a seed share a start, so seeds are the independent units. The first interval is a jackknife that leaves
    out one seed at a time (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 11); the second is
    Student's t.
    """

    def coefficient(subset: pd.DataFrame) -> float:
        return float(spearmanr(subset[x], subset[y]).statistic)

    seeds = runs["seed"].unique()
    pooled, count = coefficient(runs), len(seeds)
    left_out = np.array([coefficient(runs[runs["seed"] != seed]) for seed in seeds])
    pseudo_values = t_interval(count * pooled - (count - 1) * left_out)
    half_width = pseudo_values.high - pseudo_values.value
    over_runs = Interval(pooled, max(-1.0, pooled - half_width), min(1.0, pooled + half_width))
    return over_runs, t_interval(np.array([coefficient(subset) for _, subset in runs.groupby("seed")]))


# Markdown


def to_markdown(table: pd.DataFrame, stage: str) -> str:
    """The summary of a stage from its table."""
    cells = {(row.entry, row.metric, row.reference): row for row in table.itertuples()}
    if stage == "radius":
        parts = radius_summary(table, cells)
    else:
        parts = [accuracy_summary(table, cells)]
        if stage == "test":
            parts.append(claim_summary(table, cells))
        if stage == "curves" and (summary := sweep_summary(table, cells)):
            parts.append(summary)
    return "\n\n".join(parts) + "\n"


def accuracy_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> str:
    """Mean accuracies of all entries, best score first, and differences to BASELINE."""
    scores = mean_scores(table)
    num_seeds = cells[BASELINE, "score", BASELINE].num_seeds
    rows = []
    for entry in scores.sort_values(ascending=False).index:
        means = [f"{cells[entry, metric, BASELINE].mean:.1f}" for metric in METRICS]
        compared = ["", ""]
        if entry != BASELINE:
            compared = [format_difference(cells[entry, metric, BASELINE]) for metric in ("score", "clean")]
        rows.append([entry, *means, *compared])
    header = ["entry", *METRICS.values(), f"score - {BASELINE}", f"clean images - {BASELINE}"]
    caption = f"Top-1 in %, {num_seeds} seeds; in brackets 95 % t intervals over seeds of paired differences in points."
    return f"{caption}\n\n{markdown_table(header, rows)}"


def claim_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> str:
    """The paper's claims with the differences that test them."""
    rows = []
    for claim, entry, reference, metric in claims(table["entry"]):
        row = cells[entry, metric, reference]
        verdict = "higher" if row.difference_low > 0 else "lower" if row.difference_high < 0 else "no clear difference"
        rows.append([claim, METRICS[metric], f"{entry} - {reference}", format_difference(row), verdict])
    return markdown_table(["claim", "metric", "difference", "points", "result"], rows, text_columns=(0, 1, 2, 4))


def sweep_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> str:
    """How much the score depends on every setting: highest minus lowest; empty if there is no setting to compare.

    The two entries are selected by the scores that are compared, so the difference is biased upwards.
    """
    rows = []
    for key, values, high, low in sweep_extremes(table["entry"], mean_scores(table)):
        text = ", ".join(f"{value:g}" for value, _ in values)
        rows.append([SWEPT[key], text, f"{high} - {low}", format_difference(cells[high, "score", low])])
    header = ["setting", "values", "highest - lowest score", "points"]
    return markdown_table(header, rows, text_columns=(0, 1, 2)) if rows else ""


def radius_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> list[str]:
    """Rank correlations of the radius with accuracies, and means of all entries."""
    radii = table[table["metric"] == "radius"]
    correlations = [
        [METRICS[metric], *(format_correlation(cells[entry, metric, ""]) for entry in CORRELATIONS)]
        for metric in METRICS
    ]
    means = [
        [entry, f"{cells[entry, 'radius', ''].mean:.2f}", *(f"{cells[entry, key, ''].mean:.1f}" for key in METRICS)]
        for entry in radii["entry"]
    ]
    num_runs = radii["num_seeds"].sum()
    return [
        f"Spearman's rank correlation of the radius with top-1, {num_runs} runs of {len(radii)} entries; in brackets 95"
        " % intervals over seeds.",
        markdown_table(["top-1 on", *CORRELATIONS.values()], correlations),
        "Means over seeds; the radius in rms(u), top-1 in %.",
        markdown_table(["entry", "radius", *METRICS.values()], means),
    ]


def mean_scores(table: pd.DataFrame) -> "pd.Series[float]":
    return table[table["metric"] == "score"].drop_duplicates("entry").set_index("entry")["mean"]


def format_difference(row: Any) -> str:
    interval = f" ({row.difference_low:+.1f} to {row.difference_high:+.1f})"
    return f"{row.difference:+.1f}" + ("" if np.isnan(row.difference_low) else interval)


def format_correlation(row: Any) -> str:
    return f"{row.mean:.2f}" + ("" if np.isnan(row.low) else f" ({row.low:.2f} to {row.high:.2f})")


def markdown_table(header: list[str], rows: list[list[str]], text_columns: Iterable[int] = (0,)) -> str:
    """A table in Markdown; all but the text columns are aligned to the right."""
    alignment = ["---" if index in text_columns else "---:" for index in range(len(header))]
    lines = [f"| {' | '.join(row)} |" for row in [header, *rows]]
    return "\n".join([lines[0], f"|{'|'.join(alignment)}|", *lines[1:]])


# Plots


def save_figure(path: Path, num_panels: int, draw: Callable[[list[Any]], None]) -> None:
    figure, axes = plt.subplots(1, num_panels, figsize=(4.2 * num_panels, 3.4), layout="constrained", squeeze=False)
    draw(list(axes[0]))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def add_legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")


def plot_curves(table: pd.DataFrame, path: Path) -> None:
    """Plot differences to BASELINE over ε, init_scale and K; bands are intervals."""
    cells = {(row.entry, row.metric, row.reference): row for row in table.itertuples()}

    def draw(panels: list[Any]) -> None:
        for axes in panels[1:]:
            axes.sharey(panels[0])
        for axes, (key, label) in zip(panels, SWEPT.items(), strict=True):
            values = sweep_values(table["entry"], key)
            x = [value for value, _ in values]
            for metric, color in colors(list(METRICS)).items():
                rows: list[Any] = [cells[entry, metric, BASELINE] for _, entry in values]
                low, high = ([getattr(row, f"difference_{bound}") for row in rows] for bound in ("low", "high"))
                axes.plot(x, [row.difference for row in rows], "o-", markersize=4, color=color, label=METRICS[metric])
                axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            axes.axhline(0, color="grey", linewidth=1, linestyle="--")
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.minorticks_off()
            axes.set_xlabel(label)
        panels[0].set_ylabel("top-1 - plain finetuning, points")
        add_legend(panels[-1])

    save_figure(path, len(SWEPT), draw)


def plot_training(folder: Path, values: list[tuple[float, str]], path: Path) -> None:
    """Plot influence (at the start of synthesis dotted) and rms of the noise over training; means over seeds."""

    def draw(panels: list[Any]) -> None:
        influence, rms = panels
        for (value, entry), color in zip(values, colors([entry for _, entry in values]).values(), strict=True):
            logs = [pd.read_csv(file) for file in sorted(folder.glob(f"{entry}/seed*/metrics.csv"))]
            means = pd.concat(logs).groupby("step").mean(numeric_only=True)
            for axes, key, line in (
                (influence, "influence_before", ":"),
                (influence, "influence", "-"),
                (rms, "noise_rms", "-"),
            ):
                series = means[f"train/{key}"].dropna()
                axes.plot(series.index, series, line, color=color, label=f"ε {value:g}")
        influence.set_yscale("log")
        influence.set_ylabel("influence")
        rms.set_ylabel("rms of the noise")
        for axes in panels:
            axes.set_xlabel("step")
        add_legend(rms)

    save_figure(path, 2, draw)


def plot_radius(runs: pd.DataFrame, path: Path) -> None:
    """Plot top-1 of every run under PGD and corruptions over its radius."""
    families = runs["name"].map(method_family)

    def draw(panels: list[Any]) -> None:
        for axes, metric in zip(panels, ("pgd", "corruptions"), strict=True):
            for family, color in colors(["nullspace noise", "random noise", "adversarial", "plain"]).items():
                selected = runs[families == family]
                axes.plot(selected["radius"], selected[metric], "o", markersize=3, color=color, label=family)
            axes.set_xlabel("radius, in rms(u)")
            axes.set_ylabel(f"top-1, %, {METRICS[metric]}")
        add_legend(panels[1])

    save_figure(path, 2, draw)


def method_family(entry: str) -> str:
    for family, entries in (("plain", PLAIN), ("random noise", RANDOM), ("adversarial", ADVERSARIAL)):
        if entry in entries:
            return family
    return "nullspace noise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of a finished stage, or a CSV of studies/results")
    parser.add_argument("--save", action="store_true", help="write the table to studies/results/DATA_STAGE.csv")
    args = parser.parse_args()
    if args.path.suffix == ".csv" and args.path.is_file():
        print(to_markdown(read_table(args.path), stage=args.path.stem.rpartition("_")[2]))
    elif (args.path / "results" / "results.csv").is_file():
        print(write_report(args.path, args.save))
    else:
        raise SystemExit(
            f"error: {args.path} is neither a finished stage, such as outputs/study/digits/test, nor a CSV of"
            " studies/results"
        )


if __name__ == "__main__":
    main()
