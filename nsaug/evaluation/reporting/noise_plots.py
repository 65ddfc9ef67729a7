"""What is drawn of analyses; bars and bands are 95 % intervals."""

from typing import Any

import numpy as np
import pandas as pd

from nsaug.evaluation.reporting.formatting import names
from nsaug.evaluation.reporting.plots import SIZE, colours, svg

KINDS = (
    *("learned", "permuted", "permuted within", "permuted across"),
    *("random, same norm", "random, same influence"),
)
"""The noises of `NoiseAnalysis`, in its order."""
ALMOST_NONE = 1e-5
"""The bottom of a logarithmic axis of influences."""


def curves(own: pd.DataFrame, name: str) -> pd.DataFrame:
    """The influences of one name's noises over their scale α.

    Args:
        own: `views.findings`' table.
    """
    return own[(own["name"] == name) & (own["metric"] == "influence") & own["condition"].isin(KINDS)]


def influence_curve(own: pd.DataFrame, name: str) -> str:
    """Influence over α, a line for each kind of noise."""
    found = curves(own, name)

    def draw(axes: Any) -> None:
        for kind, colour in colours(list(KINDS)).items():
            line = found[found["condition"] == kind].sort_values("strength")
            if len(line):
                x = line["strength"].to_numpy(float)
                value, low, high = (line[key].to_numpy(float).clip(ALMOST_NONE) for key in ("value", "low", "high"))
                axes.plot(x, value, marker="o", markersize=3.5, color=colour, label=kind)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_yscale("log")
        axes.set_xlabel("α")
        axes.set_ylabel("influence")
        axes.legend(loc="lower right", frameon=False, fontsize=7)

    return svg(draw)


def agreement_bars(own: pd.DataFrame) -> str | None:
    """Share of the images whose prediction stays under each kind of noise, the names side by side."""
    found = own[(own["metric"] == "agreement") & (own["strength"] == 1) & own["condition"].isin(KINDS)]
    if found.empty:
        return None
    who = names(found)
    width = 0.8 / len(who)

    def draw(axes: Any) -> None:
        for rank, name in enumerate(who):
            of_name = found[found["name"] == name].set_index("condition").reindex(KINDS)
            value, low, high = (100 * of_name[key].to_numpy(float) for key in ("value", "low", "high"))
            spread = np.nan_to_num(np.clip([value - low, high - value], 0, None))
            x = np.arange(len(KINDS)) + (rank - (len(who) - 1) / 2) * width
            axes.bar(x, value, width, yerr=spread, capsize=2, color=colours(who)[name], label=name)
        axes.set_xticks(
            range(len(KINDS)), [kind.replace(", ", ",\n").replace(" ", "\n", 1) for kind in KINDS], fontsize=8
        )
        axes.set_ylim(0, 100)
        axes.set_ylabel("predictions that stay, %")
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False, fontsize=8)

    return svg(draw, (1.5 * SIZE[0], SIZE[1]))


def radius_curve(own: pd.DataFrame) -> str | None:
    """Radius over ε, of learned noise (solid) and of noise that is merely scaled (dashed)."""
    found = own[own["metric"] == "radius"]
    if found.empty:
        return None
    who = names(found)

    def draw(axes: Any) -> None:
        for name in who:
            for condition, style in (("learned", "-"), ("random", "--")):
                line = found[(found["name"] == name) & (found["condition"] == condition)].sort_values("strength")
                x, value, low, high = (line[key].to_numpy(float) for key in ("strength", "value", "low", "high"))
                label = name if condition == "learned" else None
                axes.plot(x, value, style, marker="o", markersize=3.5, color=colours(who)[name], label=label)
                axes.fill_between(x, low, high, color=colours(who)[name], alpha=0.12, linewidth=0)
        ticks = sorted(set(found["strength"]))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("ε (solid: learned; dashed: random, scaled)")
        axes.set_ylabel("root mean square of the noise")
        axes.legend(loc="upper left", frameon=False, fontsize=8)

    return svg(draw)
