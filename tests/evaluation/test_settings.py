"""What varies between runs, sweeps, and the frontier of a sweep."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from nsaug.evaluation.reporting import plots, sections
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.frontiers import area_rows, trade_offs
from nsaug.evaluation.reporting.settings import distinct_models, find_sweeps, varying_settings
from tests.evaluation.conftest import make_model, make_result, make_results


def run(method, seed=0, **settings):
    name = " ".join([method, *(f"{key}={value}" for key, value in settings.items())])
    nested = {"nullspace": {"eps": 0.03}, "optim": {"lr": 1e-4}, "method": {"_target_": method}}
    for key, value in settings.items():
        group, _, rest = key.partition(".")
        nested[group] = nested.get(group, {}) | {rest: value}
    model = make_model(name, seed, method=method, settings=nested)
    return dataclasses.replace(model, checkpoint=f"runs/{name}/{seed}")


def sweep(method="nullspace", key="nullspace.eps", values=(0.01, 0.03, 0.3)):
    return [run(method, seed, **{key: value}) for value in values for seed in range(3)]


def test_settings_of_a_method_count_only_within_it():
    models = [*sweep(), *sweep("pgd", "method.eps", (1, 2)), run("trades", **{"method.beta": 6, "optim.lr": 1e-3})]
    assert varying_settings(models) == ["optim.lr", "method.eps"]
    assert varying_settings(models[:1]) == []


def test_runs_that_differ_in_one_setting_are_a_sweep():
    models = [
        *sweep(),
        run("pgd"),
        run("pgd", 1),
        run("trades", **{"a.b": 1, "c.d": 1}),
        run("trades", **{"a.b": 2, "c.d": 2}),
    ]
    (found_sweep,) = find_sweeps(models)
    assert (found_sweep.method, found_sweep.key) == ("nullspace", "nullspace.eps")
    assert list(found_sweep.values.values()) == [0.01, 0.03, 0.3]
    assert found_sweep.is_numeric


def results_of(models):
    results = []
    for model in models:
        eps = float(model.metadata["settings"]["nullspace"]["eps"])
        results += make_results(model, 0.9 - eps, 0.4 + eps, 0.1 + eps)
        results.append(make_result(model, 0.5 + eps, "fog", 1.0, "corrupted", corruption="fog"))
    return results


def tables(models):
    results = results_of(models)
    return results, aggregate_seeds(tabulate(results, {})), find_sweeps(distinct_models(models))


def test_trade_off_of_a_sweep():
    _, groups, sweeps = tables(sweep())
    first, second = trade_offs(groups)
    assert (first.title, second.title) == ("pgd, expected robustness", "mean accuracy under corruptions")
    points = first.points.set_index("name")
    value = 0.03
    expected = np.mean([np.round((0.9 - value) * 50), np.round((0.4 + value) * 50), np.round((0.1 + value) * 50)]) / 50
    assert points.loc["nullspace nullspace.eps=0.03", "robust"] == pytest.approx(expected)
    assert points.loc["nullspace nullspace.eps=0.03", "clean"] == pytest.approx(round(0.87 * 50) / 50)
    rows = area_rows([first, second], sweeps)
    assert [(row["method"], row["setting"], row["points"]) for row in rows] == [("nullspace", "ε", 3)] * 2
    # The corner points of the union of rectangles: robust accuracy rises as clean accuracy falls.
    ordered = second.points.sort_values("clean")
    widths = np.diff([0, *ordered["clean"]])
    assert float(rows[1]["area"]) == pytest.approx(100 * widths @ ordered["robust"], abs=0.06)


def test_pareto_front():
    x, y = np.array([1.0, 2.0, 2.0, 3.0, 0.5]), np.array([5.0, 4.0, 4.5, 1.0, 4.0])
    assert plots.pareto_front(x, y).tolist() == [0, 2, 3]


def test_setting_curves_appear_by_themselves(monkeypatch):
    scales = []
    monkeypatch.setattr(plots, "svg", lambda draw, size=None: scales.append(drawn(draw)) or "<svg>")
    _, groups, sweeps = tables(sweep())
    ((title, curves),) = sections.setting_curves(groups, sweeps)
    assert title == "ε"
    assert [name for name, _ in curves] == ["clean", "pgd"]
    assert {axes.get_xscale() for axes in scales} == {"log"}
    assert len(scales[1].lines) == 2, "one line per radius"
    assert len(scales[1].collections) == 2, "bands"
    _, groups, sweeps = tables(sweep(values=(0.1, 0.2)))
    sections.setting_curves(groups, sweeps)
    assert scales[-1].get_xscale() == "linear"
    _, groups, sweeps = tables([run("a"), run("b")])
    assert sections.setting_curves(groups, sweeps) == []


def drawn(draw):
    figure, axes = plots.plt.subplots(layout="constrained")
    draw(axes)
    plots.plt.close(figure)
    return axes


def test_heat_map_has_the_severities(monkeypatch):
    """Severities 1 and 3 are not labeled 1 and 2."""
    axes = []
    monkeypatch.setattr(plots, "svg", lambda draw, size: axes.append(drawn(draw)) or "<svg>")
    results = [make_result(make_model(), 0.5, "fog", severity, "corrupted") for severity in (1.0, 3.0)]
    plots.heat_map(aggregate_seeds(tabulate(results, {})), "clean", ["fog"])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "3"]


def test_empty_plots_are_none():
    empty = pd.DataFrame({"name": [], "method": [], "clean": []})
    assert plots.frontier(empty) is None
    groups = aggregate_seeds(tabulate([make_result(make_model(), 0.5, n=8)], {}))
    assert plots.strength_curve(groups, "clean", "clean") is None
    assert plots.heat_map(groups, "clean", ["fog"]) is None
    assert plots.reliability({}, []) is None
