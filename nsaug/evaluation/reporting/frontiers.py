"""Trade-off between clean and robust accuracy: points for plots, and the area under the frontier of a sweep."""

from typing import Any, NamedTuple

import pandas as pd

from nsaug.evaluation.corruption_error import ON_THE_FLY
from nsaug.evaluation.reporting.formatting import result_keys
from nsaug.evaluation.reporting.settings import Sweep
from nsaug.evaluation.reporting.summaries import EXPECTED_ROBUSTNESS
from nsaug.evaluation.statistics import frontier_area

VALUES = ["value", "low", "high"]


class TradeOff(NamedTuple):
    """Clean and robust accuracy of every name.

    Attributes:
        title: of the robust accuracy.
        points: columns name, method, clean, clean_low, clean_high, and the same of robust.
    """

    title: str
    points: pd.DataFrame


def trade_offs(groups: pd.DataFrame) -> list[TradeOff]:
    """Clean accuracy against that under every attack (its expected robustness, if known) and under corruptions."""
    top1 = groups[groups["metric"] == "top1"]
    clean = top1[top1["condition"] == "clean"]
    if clean.empty:
        return []
    robust = _robust_accuracies(groups) | _corruption_accuracies(groups)
    return [TradeOff(title, _join(clean, rows)) for title, rows in robust.items()]


def _robust_accuracies(groups: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows by title: expected robustness to attacks with several radii, top-1 under those with one."""
    averaged = groups[groups["metric"] == EXPECTED_ROBUSTNESS]
    attacked = groups[(groups["condition"] == "attacked") & (groups["metric"] == "top1")]
    single = attacked[~attacked["benchmark"].isin(averaged["benchmark"])]
    return {key.heading: key.select(rows) for rows in (averaged, single) for key in result_keys(rows)}


def _corruption_accuracies(groups: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows with the mean accuracy under corruptions: from the error over all, or the mean of the top-1 rows."""
    means = {}
    for suffix in ("", ON_THE_FLY):
        rows = groups[groups["metric"] == f"mean_corruption_error{suffix}"]
        if len(rows):
            accuracies = rows.assign(value=1 - rows["value"], low=1 - rows["high"], high=1 - rows["low"])
            means[f"mean corruption accuracy{suffix.replace('_', ' ')}"] = accuracies
    corrupted = groups[(groups["condition"] == "corrupted") & (groups["metric"] == "top1")]
    if not means and len(corrupted):
        rows = corrupted.groupby("name", sort=False).agg({"method": "first", "value": "mean"}).reset_index()
        means["mean accuracy under corruptions"] = rows.assign(low=float("nan"), high=float("nan"))
    return means


def _join(clean: pd.DataFrame, robust: pd.DataFrame) -> pd.DataFrame:
    """One row per name with both accuracies; models without a method count as one of their own."""
    points = clean[["name", "method", *VALUES]].merge(
        robust[["name", *VALUES]], on="name", suffixes=("_clean", "_robust")
    )
    columns = {f"value_{kind}": kind for kind in ("clean", "robust")}
    columns |= {f"{end}_{kind}": f"{kind}_{end}" for end in ("low", "high") for kind in ("clean", "robust")}
    return points.rename(columns=columns).assign(method=points["method"].fillna(points["name"]))


def area_rows(offs: list[TradeOff], sweeps: list[Sweep]) -> list[dict[str, Any]]:
    """For every sweep and trade-off: the area under the frontier of its points, in percent."""
    rows = []
    for off in offs:
        for sweep in sweeps:
            points = off.points[off.points["name"].isin(sweep.values)]
            if len(points) < 2:
                continue
            area = frontier_area(points["clean"].to_numpy(), points["robust"].to_numpy())
            rows.append(
                {"robust": off.title, "method": sweep.method, "setting": sweep.title, "points": len(points)}
                | {"area": f"{100 * area:.1f}"}
            )
    return rows
