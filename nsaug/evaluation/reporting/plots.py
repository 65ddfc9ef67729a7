"""What is drawn of the tables. Colours go by name, in the order of the rows; bars and bands are 95 % intervals."""

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

from nsaug.evaluation.metrics import BINS, PerImageScores, bins
from nsaug.evaluation.reporting.aggregate import SCORE
from nsaug.evaluation.reporting.formatting import names, places
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


def colours(shown: list[str]) -> dict[str, Any]:
    """A colour for each name."""
    palette = plt.get_cmap("tab10").colors if len(shown) <= 10 else plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    return {name: palette[place % len(palette)] for place, name in enumerate(shown)}


def svg(draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> str:
    """A figure of one pair of axes as SVG text, to stand in a page."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    draw(axes)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def overview(groups: pd.DataFrame, path: Path) -> None:
    """results.png: top-1 at every benchmark and strength, a colour per name."""
    shown = groups[groups["metric"].isin(["top1", SCORE])]
    where, who = places(shown), names(shown)
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(where), 4.0), layout="constrained")
    width = 0.8 / max(1, len(who))
    for rank, name in enumerate(who):
        own = [place.of(shown[shown["name"] == name]) for place in where]
        values = np.array([_of(found, "value") for found in own])
        low, high = (np.array([_of(found, key) for found in own]) for key in ("low", "high"))
        spread = np.nan_to_num([np.clip(values - low, 0, None), np.clip(high - values, 0, None)])
        at_x = np.arange(len(where)) + (rank - (len(who) - 1) / 2) * width
        axes.bar(at_x, values, width, yerr=spread, capsize=2, color=colours(who)[name], label=name)
    axes.set_xticks(range(len(where)), [place.heading.replace(" ", "\n") for place in where])
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 100)
    axes.set_axisbelow(True)
    if who:
        figure.legend(loc="outside upper left", ncols=min(4, len(who)), frameon=False)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=120, format="png")
    plt.close(figure)


def _of(found: pd.DataFrame, key: str) -> float:
    return 100 * float(found[key].iloc[0]) if len(found) else float("nan")


def strength_curve(groups: pd.DataFrame, benchmark: str, clean: str | None) -> str:
    """Top-1 of each name over a benchmark's strengths, from the clean images at 0 where there are some."""
    top1 = groups[groups["metric"] == "top1"]
    who = names(top1)

    def draw(axes: Any) -> None:
        for name in who:
            own = top1[(top1["name"] == name) & (top1["benchmark"] == benchmark)]
            start = top1[(top1["name"] == name) & (top1["benchmark"] == clean)].assign(strength=0.0)
            own = pd.concat([start, own]).sort_values("strength")
            x, value = own["strength"].to_numpy(float), 100 * own["value"].to_numpy()
            axes.plot(x, value, marker="o", markersize=4, color=colours(who)[name], label=name)
            low, high = 100 * own["low"].to_numpy(), 100 * own["high"].to_numpy()
            axes.fill_between(x, low, high, color=colours(who)[name], alpha=0.12, linewidth=0)
        ticks = [place for place in places(top1) if place.benchmark == benchmark]
        axes.set_xticks(
            [0, *(place.strength for place in ticks)], ["0", *(place.heading.split()[-1] for place in ticks)]
        )
        axes.set_ylim(0, 100)
        axes.set_ylabel("top-1, %")

    return svg(draw)


def heat_map(groups: pd.DataFrame, name: str, corruptions: list[str]) -> str:
    """One name's top-1 by corruption and severity (the place of a strength in its benchmark)."""
    top1 = groups[(groups["metric"] == "top1") & (groups["name"] == name)]
    values = [
        list(100 * top1[top1["benchmark"] == corruption].sort_values("strength")["value"]) for corruption in corruptions
    ]
    most = max(map(len, values))
    grid = np.array([row + [np.nan] * (most - len(row)) for row in values])

    def draw(axes: Any) -> None:
        axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(most), range(1, most + 1))
        axes.set_yticks(range(len(corruptions)), corruptions)
        axes.set_xlabel("severity")
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k")

    return svg(draw, (max(3.2, 1.8 + 0.6 * most), 1.2 + 0.36 * len(corruptions)))


def differences(comparisons: pd.DataFrame, name: str, other: str) -> str:
    """How much better one name is than another, by benchmark and strength, with both intervals."""
    own = comparisons[(comparisons["name"] == name) & (comparisons["other"] == other)]
    labels = [place.heading for place in places(own)]
    y = -np.arange(len(own))

    def draw(axes: Any) -> None:
        value = 100 * own["difference"].to_numpy()
        for kind, shift, width, colour in (("images", -0.12, 4, "#9dbcd4"), ("seeds", 0.12, 1.5, "#222222")):
            low, high = (100 * own[f"{kind}_{end}"].to_numpy() for end in ("low", "high"))
            if not np.isnan(low).all():
                axes.hlines(y + shift, low, high, color=colour, linewidth=width, label=f"over {kind}")
        axes.plot(value, y, "o", markersize=4, color="#222222")
        axes.axvline(0, color="#b00", linewidth=1)
        axes.set_yticks(y, labels)
        axes.set_xlabel("points of top-1")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=8)

    return svg(draw, (4.4, 1.4 + 0.3 * len(own)))


def reliability(runs: dict[str, list[PerImageScores]]) -> str:
    """Accuracy over confidence in the bins of the calibration error, runs of one name together."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--")
        for name, judged in runs.items():
            confidence = np.concatenate([each.confidence for each in judged])
            right = np.concatenate([each.top1 for each in judged])
            place = bins(confidence)
            filled = [each for each in range(BINS) if (place == each).sum() >= 5]
            x = [confidence[place == each].mean() for each in filled]
            axes.plot(x, [right[place == each].mean() for each in filled], marker="o", markersize=3.5,
                      color=colours(list(runs))[name], label=name)  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    return svg(draw)


def eps_curve(rows: pd.DataFrame, benchmark: str, eps: dict[str, float]) -> str:
    """Top-1 on a benchmark over the ε that runs were trained with, a line per strength.

    Args:
        eps: by checkpoint.
    """
    told = rows[rows["checkpoint"].isin(eps) & (rows["metric"] == "top1") & (rows["benchmark"] == benchmark)]
    told = told.assign(eps=[eps[checkpoint] for checkpoint in told["checkpoint"]])
    lines = places(told)

    def draw(axes: Any) -> None:
        for place in lines:
            mean = place.of(told).groupby("eps")["value"].mean()
            axes.plot(mean.index, 100 * mean.to_numpy(), marker="o", markersize=4, label=place.heading)
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(eps.values())), [f"{value:g}" for value in sorted(set(eps.values()))])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("ε in training")
        axes.set_ylabel("top-1, %")
        if len(lines) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8)

    return svg(draw)


def picture(pixels: np.ndarray) -> str:
    """An image (H, W, 3) in uint8 as a data URI."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
