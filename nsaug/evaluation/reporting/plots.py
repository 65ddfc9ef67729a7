"""Plots of the result tables; bars and bands are 95 % intervals, colors follow the order of the names."""

import base64
import io
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
from nsaug.evaluation.reporting.aggregate import SCORE
from nsaug.evaluation.reporting.formatting import model_names, result_keys
from nsaug.utils.files import atomic_write

matplotlib.rcParams |= {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nsaug",
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


def overview(groups: pd.DataFrame, path: Path) -> None:
    """Write results.png: top-1 at every benchmark and strength, one bar per name."""
    shown = groups[groups["metric"].isin(["top1", SCORE])]
    keys, names = result_keys(shown), model_names(shown)
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(keys), 4.0), layout="constrained")
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        rows = [key.select(shown[shown["name"] == name]) for key in keys]
        value, low, high = (np.array([_percent(row, column) for row in rows]) for column in ("value", "low", "high"))
        errors = np.nan_to_num([np.clip(value - low, 0, None), np.clip(high - value, 0, None)])
        x = np.arange(len(keys)) + (i - (len(names) - 1) / 2) * width
        axes.bar(x, value, width, yerr=errors, capsize=2, color=colors(names)[name], label=name)
    axes.set_xticks(range(len(keys)), [key.heading.replace(" ", "\n") for key in keys])
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 100)
    axes.set_axisbelow(True)
    if names:
        figure.legend(loc="outside upper left", ncols=min(4, len(names)), frameon=False)
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=120, format="png")
    plt.close(figure)


def _percent(rows: pd.DataFrame, column: str) -> float:
    return 100 * float(rows[column].iloc[0]) if len(rows) else float("nan")


def strength_curve(groups: pd.DataFrame, benchmark: str, clean: str | None) -> str:
    """Top-1 of every name over a benchmark's strengths; the benchmark `clean` is drawn at 0."""
    top1 = groups[groups["metric"] == "top1"]
    names = model_names(top1)

    def draw(axes: Any) -> None:
        for name in names:
            rows = top1[(top1["name"] == name) & (top1["benchmark"] == benchmark)]
            start = top1[(top1["name"] == name) & (top1["benchmark"] == clean)].assign(strength=0.0)
            rows = pd.concat([start, rows]).sort_values("strength")
            x, value = rows["strength"].to_numpy(float), 100 * rows["value"].to_numpy()
            axes.plot(x, value, marker="o", markersize=4, color=colors(names)[name], label=name)
            low, high = 100 * rows["low"].to_numpy(), 100 * rows["high"].to_numpy()
            axes.fill_between(x, low, high, color=colors(names)[name], alpha=0.12, linewidth=0)
        keys = [key for key in result_keys(top1) if key.benchmark == benchmark]
        axes.set_xticks([0, *(key.strength for key in keys)], ["0", *(key.heading.split()[-1] for key in keys)])
        axes.set_ylim(0, 100)
        axes.set_ylabel("top-1, %")

    return svg(draw)


def heat_map(groups: pd.DataFrame, name: str, corruptions: list[str]) -> str:
    """Top-1 of one name by corruption and severity (the index of a strength in its benchmark)."""
    top1 = groups[(groups["metric"] == "top1") & (groups["name"] == name)]
    values = [
        list(100 * top1[top1["benchmark"] == corruption].sort_values("strength")["value"]) for corruption in corruptions
    ]
    num_columns = max(map(len, values))
    grid = np.array([row + [np.nan] * (num_columns - len(row)) for row in values])

    def draw(axes: Any) -> None:
        axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(num_columns), range(1, num_columns + 1))
        axes.set_yticks(range(len(corruptions)), corruptions)
        axes.set_xlabel("severity")
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k")

    return svg(draw, (max(3.2, 1.8 + 0.6 * num_columns), 1.2 + 0.36 * len(corruptions)))


def differences(comparisons: pd.DataFrame, name: str, other: str) -> str:
    """Paired differences between two names by benchmark and strength, with both intervals."""
    rows = comparisons[(comparisons["name"] == name) & (comparisons["other"] == other)]
    labels = [key.heading for key in result_keys(rows)]
    y = -np.arange(len(rows))

    def draw(axes: Any) -> None:
        value = 100 * rows["difference"].to_numpy()
        for kind, shift, width, color in (("images", -0.12, 4, "#9dbcd4"), ("seeds", 0.12, 1.5, "#222222")):
            low, high = (100 * rows[f"{kind}_{end}"].to_numpy() for end in ("low", "high"))
            if not np.isnan(low).all():
                axes.hlines(y + shift, low, high, color=color, linewidth=width, label=f"over {kind}")
        axes.plot(value, y, "o", markersize=4, color="#222222")
        axes.axvline(0, color="#b00", linewidth=1)
        axes.set_yticks(y, labels)
        axes.set_xlabel("points of top-1")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=8)

    return svg(draw, (4.4, 1.4 + 0.3 * len(rows)))


def reliability(scores_by_name: dict[str, list[PerImageScores]]) -> str:
    """Reliability diagram: accuracy over confidence, runs of one name pooled."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
        for name, runs in scores_by_name.items():
            confidence = np.concatenate([scores.confidence for scores in runs])
            top1 = np.concatenate([scores.top1 for scores in runs])
            bin_index = assign_bins(confidence)
            bins = [b for b in range(NUM_BINS) if (bin_index == b).sum() >= MIN_BIN_COUNT]
            x = [confidence[bin_index == b].mean() for b in bins]
            y = [top1[bin_index == b].mean() for b in bins]
            axes.plot(x, y, marker="o", markersize=3.5, color=colors(list(scores_by_name))[name], label=name)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    return svg(draw)


def eps_curve(rows: pd.DataFrame, benchmark: str, eps: dict[str, float]) -> str:
    """Top-1 on a benchmark over the ε used in training, one line per strength.

    Args:
        eps: ε by checkpoint.
    """
    top1 = rows[rows["checkpoint"].isin(eps) & (rows["metric"] == "top1") & (rows["benchmark"] == benchmark)]
    top1 = top1.assign(eps=[eps[checkpoint] for checkpoint in top1["checkpoint"]])
    keys = result_keys(top1)

    def draw(axes: Any) -> None:
        for key in keys:
            mean = key.select(top1).groupby("eps")["value"].mean()
            axes.plot(mean.index, 100 * mean.to_numpy(), marker="o", markersize=4, label=key.heading)
        ticks = sorted(set(eps.values()))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("ε in training")
        axes.set_ylabel("top-1, %")
        if len(keys) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8)

    return svg(draw)


def data_uri(image: np.ndarray) -> str:
    """Encode an image (H, W, 3) in uint8 as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
