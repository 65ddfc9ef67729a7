"""Tables and figures of a study. study.py calls it at the end of a stage; on its own:

    python studies/study_report.py outputs/study/digits/test           # writes summary.md and figures there
    python studies/study_report.py outputs/study/digits/test --save    # and studies/results/digits_test.csv
    python studies/study_report.py studies/results/digits_test.csv     # prints the tables of a saved CSV
    python studies/study_report.py --docs       # writes the tables and figures of PAGES from studies/results

Intervals are 95 % intervals over seeds (Student's t); differences are paired by seed.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from entries import METHODS
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from nsaug.cli.app import instantiate
from nsaug.evaluation.reporting.plots import colors
from nsaug.evaluation.statistics import Interval, t_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"
DOCS = ROOT / "docs"
PAGES = (DOCS / "results.md", ROOT / "README.md")
"""Pages with tables of studies/results."""

COLUMNS = [
    *("entry", "metric", "mean", "low", "high"),
    *("reference", "difference", "difference_low", "difference_high", "num_seeds"),
]
"""Of the table of a stage: the mean of an entry, and its difference to the entry `reference`, with their intervals.

Accuracies and calibration errors in points (%), the radius in rms(u), the others as they are.
"""
ACCURACIES = {
    "clean": "clean images",
    "robustness": "PGD",
    "l2": "PGD, L2",
    "embedding": "embedding PGD",
    "corruptions": "corruptions",
    "score": "score",
}
METRICS = ACCURACIES | {"ece": "ECE", "influence": "influence", "cost": "cost"}
"""Metrics of a run, and their titles.

PGD is the expected robustness: the mean over the radii of the suite and 0. The score is the mean of PGD and
corruptions, ECE the calibration error on clean images, influence the mean of the noise that the run trained on, and
cost that of a step in plain steps.
"""
BASELINE = "clean"
"""The entry that all others are compared with."""
DEFAULT = "nullspace"
"""The entry that stage test compares with all others."""
MAX_CLEAN_LOSS = 1.0
"""Points of accuracy on clean images that the best strength of a method may lose against BASELINE."""
MAX_SHOWN_LOSS = 4.0
"""Strengths that lose more points on clean images are left out of the figures."""
FAMILIES = {
    "nullspace noise": ("nullspace", "nullspace_per_batch", "nullspace_paper"),
    "random noise": ("random_noise_init", "random_noise_norm", "random_noise_influence", "r3f"),
    "ascent on embeddings": ("embedding_pgd", "freelb", "smart"),
    "attacks on images": ("fgsm_rs", "pgd_3_steps", "trades_3_steps"),
    "augmentation": ("augmix", "gaussian_noise", "r_drop"),
}
BUDGETS = {
    "up to 2 plain steps": (0.0, 2.2),
    "about 3 plain steps": (2.2, 3.4),
    "about 4 to 5 plain steps": (3.4, 6.0),
}
"""Columns of the figures, and the range of the cost of a step."""
CORRELATIONS = {"rank_correlation_of_runs": "all runs", "rank_correlation_of_entries": "entries, mean over seeds"}
"""Entries in the table of stage radius that hold correlations of a metric with the radius."""

Row = dict[str, Any]


def write_report(folder: Path, save: bool = False) -> str:
    """Write the summary and the figures of a stage.

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
        if stage == "tune":
            plot_frontiers(table, folder / "frontiers.png")
    text = to_markdown(table, stage, folder.parent.name)
    (folder / "summary.md").write_text(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        table.to_csv(RESULTS / f"{folder.parent.name}_{stage}.csv", index=False)
    return text


# Tables


def read_runs(folder: Path) -> pd.DataFrame:
    """The metrics of every run of a stage, indexed by (name, seed); accuracies and calibration errors in points."""
    rows = pd.read_csv(folder / "results" / "results.csv")
    rows = rows[rows["over"] == "images"]
    top1 = rows["metric"] == "top1"
    selected = {
        "clean": top1 & (rows["benchmark"] == "clean"),
        "robustness": (rows["metric"] == "expected_robustness") & (rows["benchmark"] == "pgd"),
        "l2": top1 & (rows["benchmark"] == "pgd_l2"),
        "embedding": top1 & (rows["benchmark"] == "embedding_pgd"),
        "corruptions": top1 & (rows["condition"] == "corrupted"),
        "ece": (rows["metric"] == "ece") & (rows["benchmark"] == "clean"),
    }
    if not selected["robustness"].any():  # a single radius
        selected["robustness"] = top1 & (rows["benchmark"] == "pgd")
    key = ["name", "seed"]
    runs = pd.DataFrame({metric: 100 * rows[mask].groupby(key)["value"].mean() for metric, mask in selected.items()})
    runs["score"] = (runs["robustness"] + runs["corruptions"]) / 2
    folders = rows.groupby(key)["checkpoint"].first().map(lambda file: Path(file).parent)
    runs["influence"] = folders.map(mean_influence)
    runs["cost"] = folders.map(step_cost)
    return runs.reindex([tuple(row) for row in rows[key].drop_duplicates().to_numpy()]).dropna(axis=1, how="all")


def mean_influence(run: Path) -> float:
    """Mean influence of the noise over the steps that a run logged; NaN for other methods."""
    file = run / "metrics.csv"
    log = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    return float(log["train/influence"].mean()) if "train/influence" in log else float("nan")


def step_cost(run: Path) -> float:
    """Cost of a run in plain runs of as many steps, as its method declares it; NaN without its configuration."""
    file = run / ".hydra" / "config.yaml"
    if not file.is_file():
        return float("nan")
    config = OmegaConf.load(file)
    method = instantiate(config.method)
    return float(method.cost * method.duration_factor)


def compare_runs(runs: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The table of a stage, all entries against BASELINE, in stage test also DEFAULT against all."""
    entries = list(runs.index.get_level_values("name").unique())
    metrics = [metric for metric in METRICS if metric in runs]
    comparisons = [(entry, metric, BASELINE) for entry in entries for metric in metrics]
    if stage == "test" and DEFAULT in entries:
        comparisons += [(DEFAULT, metric, entry) for entry in entries for metric in metrics if metric in ACCURACIES]
    return to_table([compare(runs, *comparison) for comparison in dict.fromkeys(comparisons)])


def compare(runs: pd.DataFrame, entry: str, metric: str, reference: str) -> Row:
    """The mean of an entry over seeds, and its paired difference to another entry."""
    values = runs[metric].loc[entry]
    differences = (values - runs[metric].loc[reference]).dropna()
    difference = t_interval(differences.to_numpy()) if len(differences) else Interval(*[float("nan")] * 3)
    return make_row(entry, metric, t_interval(values.to_numpy()), len(values)) | {
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


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Means by entry, in the order of the table, and metric."""
    first = table.drop_duplicates(["entry", "metric"])
    return first.pivot(index="entry", columns="metric", values="mean").reindex(first["entry"].unique())


# Choice of strengths


def choose_strengths(data: str) -> dict[str, str]:
    """Settings of train.py for every method at its best strength in stage tune, by method.

    Raises:
        SystemExit: stage tune was not saved.
    """
    file = RESULTS / f"{data}_tune.csv"
    if not file.is_file():
        raise SystemExit(
            f"error: stage test needs the best strengths of studies/results/{file.name}: type"
            f" python studies/study.py tune --data {data} --save first"
        )
    table = means(read_table(file))
    chosen = {}
    for method in METHODS:
        candidates = method_entries(method, data)
        if measured := [entry for entry in candidates if entry in table.index]:
            chosen[method] = candidates[best_strength(table, measured)]
    return chosen


def method_entries(method: str, data: str) -> dict[str, str]:
    """Settings of train.py for the strengths of a method in stage tune, by entry."""
    baseline = {BASELINE: "method=clean"} if method == BASELINE else {}
    return baseline | METHODS[method].entries(method, data)


def best_strength(table: pd.DataFrame, entries: Sequence[str]) -> str:
    """The entry with the highest score among those that lose at most MAX_CLEAN_LOSS on clean images, else the least."""
    candidates = table.loc[list(entries)]
    allowed = candidates[candidates["clean"] >= table["clean"][BASELINE] - MAX_CLEAN_LOSS]
    return str(allowed["score"].idxmax() if len(allowed) else candidates["clean"].idxmax())


# Radius


def read_radius_runs(folder: Path) -> pd.DataFrame:
    """The radius of every run, and its metrics in stage test: columns name, seed, radius, METRICS."""
    rows = pd.read_csv(folder / "results" / "results.csv")
    rows = rows[(rows["condition"] == "learned") & (rows["metric"] == "relative radius")]
    radii = rows.groupby(["name", "seed"])["value"].mean().rename("radius")
    test = folder.parent / "test"
    if not (test / "results" / "results.csv").is_file():
        raise SystemExit(f"error: {folder} needs the results of stage test beside it: run that stage first")
    return read_runs(test).join(radii, how="inner").reset_index()


def radius_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of stage radius: means of every entry, largest radius first, and rank correlations."""
    metrics = [metric for metric in ACCURACIES if metric in runs]
    rows = []
    for entry in runs.groupby("name")["radius"].mean().sort_values(ascending=False).index:
        entry_runs = runs[runs["name"] == entry]
        for metric in ("radius", *metrics):
            rows.append(make_row(entry, metric, t_interval(entry_runs[metric].to_numpy()), len(entry_runs)))
    num_seeds = runs["seed"].nunique()
    for metric in metrics:
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


def to_markdown(table: pd.DataFrame, stage: str, data: str) -> str:
    """The summary of a stage from its table."""
    cells = {(row.entry, row.metric, row.reference): row for row in table.itertuples()}
    if stage == "radius":
        return "\n\n".join(radius_summary(table, cells)) + "\n"
    parts = [accuracy_summary(table, cells)]
    if stage == "test" and (DEFAULT, "score", DEFAULT) in cells:
        parts.append(comparison_summary(table, cells))
    if stage == "tune":
        parts.append(choice_summary(table, data))
    return "\n\n".join(parts) + "\n"


def accuracy_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> str:
    """Means of all entries, best score first, and differences to BASELINE."""
    values = means(table)
    metrics = [metric for metric in METRICS if metric in values]
    num_seeds = cells[BASELINE, "score", BASELINE].num_seeds
    rows = []
    for entry in values["score"].sort_values(ascending=False).index:
        row = [format_value(metric, values.loc[entry, metric]) for metric in metrics]
        compared = ["", ""]
        if entry != BASELINE:
            compared = [format_difference(cells[entry, metric, BASELINE]) for metric in ("score", "clean")]
        rows.append([entry, *row, *compared])
    titles = [METRICS[metric] for metric in metrics]
    header = ["entry", *titles, f"score - {BASELINE}", f"clean images - {BASELINE}"]
    return f"{caption(num_seeds)}\n\n{markdown_table(header, rows)}"


def caption(num_seeds: int) -> str:
    if num_seeds == 1:
        return "Top-1 in %, 1 seed; differences in points."
    return f"Top-1 in %, {num_seeds} seeds; in brackets 95 % t intervals over seeds of paired differences in points."


def comparison_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> str:
    """DEFAULT against every other entry; bold where the interval excludes 0."""
    metrics = [metric for metric in ACCURACIES if (DEFAULT, metric, BASELINE) in cells]
    rows = []
    for entry in means(table)["score"].sort_values(ascending=False).index:
        if entry != DEFAULT:
            differences = [cells[DEFAULT, metric, entry] for metric in metrics]
            rows.append([f"{DEFAULT} - {entry}", *(format_difference(row, emphasize=True) for row in differences)])
    text = "Differences between nullspace noise and every other entry; bold if the interval excludes 0."
    return f"{text}\n\n{markdown_table(['', *(ACCURACIES[metric] for metric in metrics)], rows)}"


def choice_summary(table: pd.DataFrame, data: str) -> str:
    """The best strength of every method."""
    values = means(table)
    chosen = []
    for method in METHODS:
        if measured := [entry for entry in method_entries(method, data) if entry in values.index]:
            chosen.append(best_strength(values, measured))
    return "Best strengths: " + ", ".join(chosen) + "."


def radius_summary(table: pd.DataFrame, cells: dict[Any, Any]) -> list[str]:
    """Rank correlations of the radius with accuracies, and means of all entries."""
    radii = table[table["metric"] == "radius"]
    metrics = [metric for metric in ACCURACIES if metric in set(table["metric"])]
    correlations = [
        [METRICS[metric], *(format_correlation(cells[entry, metric, ""]) for entry in CORRELATIONS)]
        for metric in metrics
    ]
    rows = [
        [entry, f"{cells[entry, 'radius', ''].mean:.2f}", *(f"{cells[entry, key, ''].mean:.1f}" for key in metrics)]
        for entry in radii["entry"]
    ]
    num_runs = radii["num_seeds"].sum()
    return [
        f"Spearman's rank correlation of the radius with top-1, {num_runs} runs of {len(radii)} entries; in brackets 95"
        " % intervals over seeds.",
        markdown_table(["top-1 on", *CORRELATIONS.values()], correlations),
        "Means over seeds; the radius in rms(u), top-1 in %.",
        markdown_table(["entry", "radius", *(METRICS[metric] for metric in metrics)], rows),
    ]


def format_value(metric: str, value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.2f}" if metric in ("influence", "cost") else f"{value:.1f}"


def format_difference(row: Any, emphasize: bool = False) -> str:
    low, high = row.difference_low, row.difference_high
    text = f"{row.difference:+.1f}" + ("" if np.isnan(low) else f" ({low:+.1f} to {high:+.1f})")
    return f"**{text}**" if emphasize and (low > 0 or high < 0) else text


def format_correlation(row: Any) -> str:
    return f"{row.mean:.2f}" + ("" if np.isnan(row.low) else f" ({row.low:.2f} to {row.high:.2f})")


def markdown_table(header: list[str], rows: list[list[str]], text_columns: Iterable[int] = (0,)) -> str:
    """A table in Markdown; all but the text columns are aligned to the right."""
    alignment = ["---" if index in text_columns else "---:" for index in range(len(header))]
    lines = [f"| {' | '.join(row)} |" for row in [header, *rows]]
    return "\n".join([lines[0], f"|{'|'.join(alignment)}|", *lines[1:]])


# Docs


def update_docs(text: str) -> str:
    """Replace what stands between `<!-- DATA_STAGE.csv -->` and `<!-- end -->` by the tables of that CSV.

    With names of entries after the CSV, separated by commas, it is the first table with these rows.
    """

    def tables(match: re.Match[str]) -> str:
        file = RESULTS / match[1]
        table = read_table(file)
        data, _, stage = file.stem.rpartition("_")
        if match[2]:
            table = table[table["entry"].isin(match[2].split(","))]
            cells = {(row.entry, row.metric, row.reference): row for row in table.itertuples()}
            shown = f"{accuracy_summary(table, cells)}\n"
        else:
            shown = to_markdown(table, stage, data)
        return f"{match[0].splitlines()[0]}\n\n{shown}\n<!-- end -->"

    return re.sub(r"<!-- (\w+\.csv)(?: ([\w,]+))? -->.*?<!-- end -->", tables, text, flags=re.DOTALL)


def write_docs() -> None:
    """Write the tables of PAGES, and the frontiers beside docs/results.md, from studies/results."""
    for page in PAGES:
        page.write_text(update_docs(page.read_text()))
    for file in sorted(RESULTS.glob("*_tune.csv")):
        plot_frontiers(read_table(file), DOCS / f"frontiers_{file.stem.removesuffix('_tune')}.png")


# Figures


def plot_frontiers(table: pd.DataFrame, path: Path) -> None:
    """Plot accuracy under attack and corruption over that on clean images, a line for the strengths of a method.

    Each column has the methods of one budget, and plain finetuning for one plain step as a star.
    """
    values = means(table).reindex(columns=list(METRICS))
    values = values[values["clean"] >= values["clean"][BASELINE] - MAX_SHOWN_LOSS]
    methods = values.drop(BASELINE).groupby(values.index.drop(BASELINE).map(method_of), sort=False)
    styles = {
        method: (color, marker)
        for (family, members), color in zip(FAMILIES.items(), colors(list(FAMILIES)).values(), strict=True)
        for method, marker in zip(members, "os^D", strict=False)
    }
    figure, axes = plt.subplots(2, len(BUDGETS), figsize=(11, 7.5), layout="constrained", sharex=True, sharey="row")
    for row, metric in enumerate(("robustness", "corruptions")):
        for column, (title, (low, high)) in enumerate(BUDGETS.items()):
            panel = axes[row, column]
            x, y = values.loc[BASELINE, ["clean", metric]]
            panel.plot(x, y, "k*", markersize=11, label="plain finetuning", zorder=3)
            for method, points in methods:
                if low < points["cost"].iloc[0] <= high:
                    color, marker = styles.get(method, ("black", "x"))
                    points = points.loc[sorted(points.index, key=strength_of)]
                    x, y = points["clean"], points[metric]
                    panel.plot(x, y, marker=marker, markersize=4, linewidth=1, color=color, label=method)
            panel.set_title(title if row == 0 else None, fontsize=10)
            panel.grid(alpha=0.3)
        axes[row, 0].set_ylabel(f"top-1, %, {METRICS[metric]}")
    for panel in axes[1]:
        panel.set_xlabel("top-1 on clean images, %")
        panel.legend(frameon=False, fontsize=7, ncols=2, bbox_to_anchor=(0.5, -0.18), loc="upper center")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot_radius(runs: pd.DataFrame, path: Path) -> None:
    """Plot top-1 of every run under PGD and corruptions over its radius."""
    families = runs["name"].map(method_family)
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for panel, metric in zip(panels, ("robustness", "corruptions"), strict=True):
        for family, color in colors([*FAMILIES, "plain"]).items():
            selected = runs[families == family]
            panel.plot(selected["radius"], selected[metric], "o", markersize=3, color=color, label=family)
        panel.set_xlabel("radius, in rms(u)")
        panel.set_ylabel(f"top-1, %, {METRICS[metric]}")
    panels[1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def method_of(entry: str) -> str:
    """The method of an entry of stage tune."""
    return max((method for method in METHODS if entry == method or entry.startswith(f"{method}_")), key=len)


def strength_of(entry: str) -> float:
    """The strength of an entry of stage tune; 0 for a method without."""
    return float(entry.removeprefix(method_of(entry)).removeprefix("_") or 0)


def method_family(entry: str) -> str:
    return next((family for family, methods in FAMILIES.items() if entry in methods), "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="folder of a finished stage, or a CSV of studies/results")
    parser.add_argument("--save", action="store_true", help="write the table to studies/results/DATA_STAGE.csv")
    parser.add_argument("--docs", action="store_true", help="write the tables and figures of README.md and docs/")
    args = parser.parse_args()
    if args.docs:
        write_docs()
    elif args.path is not None and args.path.suffix == ".csv" and args.path.is_file():
        data, _, stage = args.path.stem.rpartition("_")
        print(to_markdown(read_table(args.path), stage, data))
    elif args.path is not None and (args.path / "results" / "results.csv").is_file():
        print(write_report(args.path, args.save))
    else:
        raise SystemExit(
            f"error: {args.path} is neither a finished stage, such as outputs/study/digits/test, nor a CSV of"
            " studies/results"
        )


if __name__ == "__main__":
    main()
