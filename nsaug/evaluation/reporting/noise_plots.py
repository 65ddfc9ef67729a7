"""Plots of analyses, as in `plots`; bars and bands are 95 % intervals."""

from typing import Any

import numpy as np
import pandas as pd

from nsaug.evaluation.reporting.formatting import model_names
from nsaug.evaluation.reporting.plots import SIZE, colors, label, legend_below, svg

KINDS = (
    *("learned", "permuted", "permuted within", "permuted across"),
    *("random, same norm", "random, same influence"),
)
"""Conditions of `NoiseAnalysis`, in its order."""
MIN_INFLUENCE = 1e-5
"""Lower end of the logarithmic influence axis."""


def influence_curve(rows: pd.DataFrame, name: str) -> str | None:
    """Influence of one name's noises over their scale α, one line per kind of noise.

    Args:
        rows: table from `formatting.analysis_rows`.
    """
    influence = rows[(rows["name"] == name) & (rows["metric"] == "influence") & rows["condition"].isin(KINDS)]
    if influence.empty:
        return None

    def draw(axes: Any) -> None:
        for kind, color in colors(list(KINDS)).items():
            line = influence[influence["condition"] == kind].sort_values("strength")
            if len(line):
                x = line["strength"].to_numpy(float)
                value, low, high = (line[key].to_numpy(float).clip(MIN_INFLUENCE) for key in ("value", "low", "high"))
                axes.plot(x, value, marker="o", markersize=3.5, color=color, label=kind)
                axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set_yscale("log")
        axes.set_xlabel("α")
        axes.set_ylabel("influence")
        legend_below(axes)

    return svg(draw)


def agreement_bars(rows: pd.DataFrame) -> str | None:
    """Percentage of unchanged predictions under every kind of noise, one bar per name."""
    agreement = rows[(rows["metric"] == "agreement") & (rows["strength"] == 1) & rows["condition"].isin(KINDS)]
    if agreement.empty:
        return None
    names = model_names(agreement)
    width = 0.8 / len(names)

    def draw(axes: Any) -> None:
        for i, name in enumerate(names):
            bars = agreement[agreement["name"] == name].set_index("condition").reindex(KINDS)
            value, low, high = (100 * bars[key].to_numpy(float) for key in ("value", "low", "high"))
            errors = np.nan_to_num(np.clip([value - low, high - value], 0, None))
            x = np.arange(len(KINDS)) + (i - (len(names) - 1) / 2) * width
            axes.bar(x, value, width, yerr=errors, capsize=2, color=colors(names)[name], label=label(name))
        axes.set_xticks(
            range(len(KINDS)), [kind.replace(", ", ",\n").replace(" ", "\n", 1) for kind in KINDS], fontsize=8
        )
        axes.set_ylim(0, 100)
        axes.set_ylabel("unchanged predictions, %")
        axes.set_axisbelow(True)
        legend_below(axes)

    return svg(draw, (1.5 * SIZE[0], SIZE[1]))


def radius_curve(rows: pd.DataFrame) -> str | None:
    """Radius over ε, of learned noise (solid) and of scaled random noise (dashed)."""
    radius = rows[rows["metric"] == "radius"]
    if radius.empty:
        return None
    names = model_names(radius)

    def draw(axes: Any) -> None:
        for name in names:
            for condition, style in (("learned", "-"), ("random", "--")):
                line = radius[(radius["name"] == name) & (radius["condition"] == condition)].sort_values("strength")
                x, value, low, high = (line[key].to_numpy(float) for key in ("strength", "value", "low", "high"))
                text = label(name) if condition == "learned" else None
                axes.plot(x, value, style, marker="o", markersize=3.5, color=colors(names)[name], label=text)
                axes.fill_between(x, low, high, color=colors(names)[name], alpha=0.12, linewidth=0)
        ticks = sorted(set(radius["strength"]))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("ε (solid: learned; dashed: random, scaled)")
        axes.set_ylabel("root mean square of the noise")
        legend_below(axes)

    return svg(draw)
