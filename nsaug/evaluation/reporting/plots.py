"""Plots of the result tables; bars and bands are 95 % intervals, colors follow the order of the names.

Functions that return SVG text return None if there is nothing to draw.
"""

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from nsaug.evaluation.metrics import NUM_BINS, PerImageScores, assign_bins
from nsaug.evaluation.reporting.formatting import ResultKey, model_names, result_keys
from nsaug.evaluation.reporting.settings import Sweep
from nsaug.evaluation.reporting.summaries import SCORE
from nsaug.evaluation.reporting.text import shorten
from nsaug.utils.files import atomic_write

matplotlib.rcParams |= {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nsaug",
    "text.parse_math": False,  # names may contain dollar signs
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
SIZE = (4.4, 3.2)
MIN_BIN_COUNT = 5
"""Bins with fewer images are left out of the reliability diagram."""
MAX_BARS = 24
"""The overview has no corruptions if it would have more groups of bars."""
MAX_THUMBNAIL = 112
"""Largest side of the images in the report, in pixels."""


def colors(names: list[str]) -> dict[str, Any]:
    """A color for every name."""
    palette = plt.get_cmap("tab10").colors if len(names) <= 10 else plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def svg(draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> str:
    """Draw a figure with one pair of axes and return it as SVG text for embedding in a page."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def label(name: str) -> str:
    """A name as text in a plot; matplotlib leaves names that start with an underscore out of legends."""
    return f" {shorten(name)}" if name.startswith("_") else shorten(name)


def legend_below(axes: Any) -> None:
    """A legend below the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 24 else 2
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.17 * -(-len(labels) // columns))
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def overview(groups: pd.DataFrame, path: Path) -> None:
    """Write results.png: top-1 and score at every benchmark and strength, one bar per name."""
    shown = groups[groups["metric"].isin(["top1", SCORE])]
    if len(result_keys(shown)) > MAX_BARS:
        shown = shown[shown["condition"] != "corrupted"]
    keys, names = result_keys(shown), model_names(shown)
    figure, axes = plt.subplots(figsize=(max(4.0, 1.6 + 1.1 * len(keys)), 4.0), layout="constrained")
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        rows = [key.select(shown[shown["name"] == name]) for key in keys]
        value, low, high = (np.array([_percent(row, column) for row in rows]) for column in ("value", "low", "high"))
        errors = np.nan_to_num([np.clip(value - low, 0, None), np.clip(high - value, 0, None)])
        x = np.arange(len(keys)) + (i - (len(names) - 1) / 2) * width
        axes.bar(x, value, width, yerr=errors, capsize=2, color=colors(names)[name], label=label(name))
    axes.set_xticks(range(len(keys)), [shorten(key.heading).replace(" ", "\n") for key in keys])
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 100)
    axes.set_axisbelow(True)
    if names:
        figure.legend(loc="outside upper left", ncols=min(4, len(names)), frameon=False)
    else:
        axes.text(0.5, 0.5, "no accuracies", ha="center", transform=axes.transAxes)
    with atomic_write(path) as tmp_path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(tmp_path, dpi=120, format="png")
    plt.close(figure)


def _percent(rows: pd.DataFrame, column: str) -> float:
    return 100 * float(rows[column].iloc[0]) if len(rows) else float("nan")


def strength_curve(groups: pd.DataFrame, benchmark: str, clean: str | None) -> str | None:
    """Top-1 of every name over a benchmark's strengths; the benchmark `clean` is drawn at 0."""
    top1, names = groups[groups["metric"] == "top1"], model_names(groups)
    keys = [key for key in result_keys(top1) if key.benchmark == benchmark and key.strength is not None]
    if len(keys) + (clean is not None) < 2:
        return None  # a curve of one point

    def draw(axes: Any) -> None:
        for name in names:
            rows = top1[(top1["name"] == name) & (top1["benchmark"] == benchmark)]
            start = top1[(top1["name"] == name) & (top1["benchmark"] == clean)].assign(strength=0.0)
            _line(axes, pd.concat([start, rows]), "strength", color=colors(names)[name])
        ticks = ([(0.0, "0")] if clean is not None else []) + [(key.strength or 0.0, key.strength_text) for key in keys]
        axes.set_xticks(*_separate_ticks(ticks))
        _set_percent(axes)

    return svg(draw)


def _separate_ticks(ticks: list[tuple[float, str]]) -> tuple[list[float], list[str]]:
    """Positions and texts of ticks, from the largest down, without those whose text would cover another one."""
    ticks = sorted(ticks, reverse=True)
    shown = ticks[:1]
    for tick in ticks[1:]:
        if shown[-1][0] - tick[0] >= 0.13 * (ticks[0][0] - ticks[-1][0]):
            shown.append(tick)
    return [x for x, _ in shown], [text for _, text in shown]


def _line(axes: Any, rows: pd.DataFrame, x: str, **style: Any) -> None:
    """Values in percent over a column, with a band for their intervals."""
    rows = rows.sort_values(x)
    values, low, high = (100 * rows[key].to_numpy(float) for key in ("value", "low", "high"))
    positions = rows[x].to_numpy(float)
    axes.plot(positions, values, marker="o", markersize=4, **style)
    axes.fill_between(positions, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _set_percent(axes: Any) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("top-1, %")


def heat_map(groups: pd.DataFrame, name: str, corruptions: list[str]) -> str | None:
    """Top-1 of one name by corruption and strength."""
    top1 = groups[(groups["metric"] == "top1") & (groups["name"] == name) & groups["benchmark"].isin(corruptions)]
    if top1.empty:
        return None
    grid = 100 * top1.pivot_table(index="benchmark", columns="strength", values="value", sort=False)
    grid = grid.reindex(index=[name for name in corruptions if name in grid.index], columns=sorted(grid.columns))

    def draw(axes: Any) -> None:
        axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(grid.shape[1]), [f"{strength:g}" for strength in grid.columns])
        axes.set_yticks(range(grid.shape[0]), map(shorten, grid.index))
        axes.set_xlabel("severity")
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(grid.to_numpy()):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k")

    width = 1.0 + 0.08 * max(len(shorten(name)) for name in grid.index) + 0.5 * grid.shape[1]
    return svg(draw, (max(3.2, width), 1.2 + 0.36 * len(grid)))


def differences(comparisons: pd.DataFrame, name: str, other: str) -> str | None:
    """Paired differences between two names by benchmark and strength, with both intervals."""
    rows = comparisons[(comparisons["name"] == name) & (comparisons["other"] == other)]
    if rows.empty:
        return None
    labels = [ResultKey.of(row).heading for row in rows.to_dict("records")]
    y = -np.arange(len(rows))

    def draw(axes: Any) -> None:
        value = 100 * rows["difference"].to_numpy()
        for kind, shift, width, color in (("images", -0.12, 4, "#9dbcd4"), ("seeds", 0.12, 1.5, "#222222")):
            low, high = (100 * rows[f"{kind}_{end}"].to_numpy() for end in ("low", "high"))
            if not np.isnan(low).all():
                axes.hlines(y + shift, low, high, color=color, linewidth=width, label=f"over {kind}")
        axes.plot(value, y, "o", markersize=4, color="#222222")
        axes.axvline(0, color="#b00", linewidth=1)
        axes.set_yticks(y, map(shorten, labels))
        axes.set_xlabel("points of top-1")
        legend_below(axes)

    return svg(draw, (2.4 + 0.08 * max(len(shorten(text)) for text in labels), 1.4 + 0.3 * len(rows)))


def reliability(scores_by_name: dict[str, list[PerImageScores]], names: list[str]) -> str | None:
    """Reliability diagram: accuracy over confidence, runs of one name pooled; colors follow the order of `names`."""
    lines = {name: _bins(runs) for name, runs in scores_by_name.items()}
    if not any(len(x) for x, _ in lines.values()):
        return None

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
        for name, (x, y) in lines.items():
            axes.plot(x, y, marker="o", markersize=3.5, color=colors(names)[name])
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    return svg(draw)


def _bins(runs: list[PerImageScores]) -> tuple[list[float], list[float]]:
    """Confidence and accuracy in bins that hold enough images."""
    confidence = np.concatenate([scores.confidence for scores in runs])
    top1 = np.concatenate([scores.top1 for scores in runs])
    bin_index = assign_bins(confidence)
    masks = [bin_index == b for b in range(NUM_BINS) if (bin_index == b).sum() >= MIN_BIN_COUNT]
    return [float(confidence[mask].mean()) for mask in masks], [float(top1[mask].mean()) for mask in masks]


def setting_curve(groups: pd.DataFrame, sweeps: list[Sweep], benchmark: str) -> str | None:
    """Accuracy on a benchmark over a numeric setting, one color per method and one line per strength.

    Args:
        sweeps: of the same setting.
    """
    values = {name: value for sweep in sweeps for name, value in sweep.values.items()}
    rows = groups[groups["name"].isin(values) & groups["metric"].isin(["top1", SCORE])]
    rows = rows[rows["benchmark"] == benchmark].assign(setting=lambda frame: frame["name"].map(values).astype(float))
    keys = result_keys(rows)
    if not keys:
        return None
    hues = colors([sweep.method for sweep in sweeps] if len(sweeps) > 1 else [key.heading for key in keys])
    styles = ("-", "--", ":", "-.")

    def draw(axes: Any) -> None:
        for sweep in sweeps:
            for i, key in enumerate(keys):
                line = key.select(rows[rows["name"].isin(sweep.values)])
                several = len(sweeps) > 1
                color = hues[sweep.method] if several else hues[key.heading]
                text = f"{sweep.method}, {key.heading}" if several else key.heading
                style = styles[i % len(styles)] if several else "-"
                _line(axes, line, "setting", color=color, linestyle=style, label=label(text))
        _set_setting_axis(axes, sorted(set(values.values())), sweeps[0].title)
        _set_percent(axes)
        if len(keys) > 1 or len(sweeps) > 1:
            legend_below(axes)

    return svg(draw)


def _set_setting_axis(axes: Any, values: list[float], title: str) -> None:
    """Ticks at the values; logarithmic if they are positive and span more than a decade."""
    if values[0] > 0 and values[-1] > 10 * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(shorten(title))


def frontier(points: pd.DataFrame) -> str | None:
    """Robust over clean accuracy, one point per name, one color per method; lines join the points on a frontier.

    Args:
        points: columns name, method, clean, robust, in fractions, and for both accuracies _low and _high.
    """
    if len(points) < 2:
        return None
    methods = list(dict.fromkeys(points["method"]))

    def draw(axes: Any) -> None:
        for method in methods:
            rows = points[points["method"] == method]
            x, y = 100 * rows["clean"].to_numpy(), 100 * rows["robust"].to_numpy()
            errors = [100 * np.nan_to_num(_spread(rows, column)) for column in ("clean", "robust")]
            style = {"color": colors(methods)[method], "label": label(method), "markersize": 4, "elinewidth": 0.8}
            axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", **style)
            best = pareto_front(x, y)
            axes.plot(x[best], y[best], color=colors(methods)[method], linewidth=1)
        axes.set_xlabel("clean top-1, %")
        axes.set_ylabel("accuracy, %")
        legend_below(axes)

    return svg(draw)


def _spread(rows: pd.DataFrame, column: str) -> np.ndarray:
    value, low, high = (rows[key].to_numpy(float) for key in (column, f"{column}_low", f"{column}_high"))
    return np.clip([value - low, high - value], 0, None)


def pareto_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point exceeds in both coordinates, by ascending x."""
    order = np.lexsort((-y, -x))  # descending x, of equal x the highest y first
    best = np.maximum.accumulate(y[order])
    is_new = np.r_[True, best[1:] > best[:-1]]
    return order[is_new][::-1]


def data_uri(image: np.ndarray) -> str:
    """Encode an image (H, W, 3) in uint8 as a PNG data URI, large ones reduced."""
    buffer = io.BytesIO()
    thumbnail(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(image: np.ndarray) -> Image.Image:
    """An image with sides of at most MAX_THUMBNAIL, reduced by an integer factor."""
    factor = -(-max(image.shape[:2]) // MAX_THUMBNAIL)
    return Image.fromarray(image).reduce(factor)
