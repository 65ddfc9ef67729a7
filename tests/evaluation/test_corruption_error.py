"""Errors over all corruptions against their formulas, and the conditions they need."""

import dataclasses

import numpy as np
import pytest

from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data.names import wnids
from nsaug.evaluation.corruption_error import ALEXNET_ERROR, corruption_errors
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.formatting import main_rows
from tests.evaluation.conftest import make_model, make_result

ACCURACY = {name: np.linspace(0.9, 0.9 - 0.04 * i, 5) for i, name in enumerate(TEST_CORRUPTIONS)}


def on_imagenet(result):
    return dataclasses.replace(result, class_names=wnids())


def corrupted(name, accuracies, stored=True, severities=(1, 2, 3, 4, 5), n=50):
    """Results under one corruption."""
    return [
        on_imagenet(
            make_result(
                make_model(), accuracy, f"c_{name}", float(severity), "corrupted", n, corruption=name, is_stored=stored
            )
        )
        for severity, accuracy in zip(severities, accuracies, strict=True)
    ]


def all_corruptions(stored=True, accuracy=ACCURACY, n=50):
    return [result for name in TEST_CORRUPTIONS for result in corrupted(name, accuracy[name], stored, n=n)]


@pytest.fixture
def results():
    return [on_imagenet(make_result(make_model(), 0.94)), *all_corruptions()]


def values(results):
    return {(item.benchmark, item.metric): item.values.mean() for item in corruption_errors(results)}


def test_formulas(results):
    errors = {name: 1 - np.round(ACCURACY[name] * 50) / 50 for name in TEST_CORRUPTIONS}  # 50 images
    computed = values(results)
    assert computed["c_fog", "corruption_error"] == pytest.approx(errors["fog"].mean())
    assert computed["mean_corruption_error", "mean_corruption_error"] == pytest.approx(np.mean(list(errors.values())))
    # From the ImageNet-C repository, in percent.
    alexnet = dict(zip(TEST_CORRUPTIONS, [
        88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
        64.6056, 71.7840, 60.6500,
    ], strict=True))  # fmt: skip
    ratios = [100 * errors[name].sum() / (5 * alexnet[name]) for name in TEST_CORRUPTIONS]
    assert computed["mCE", "mCE"] == pytest.approx(np.mean(ratios))
    relative = [(100 * errors[name].mean() - 6) / (alexnet[name] - 43.5) for name in TEST_CORRUPTIONS]
    assert computed["relative_mCE", "relative_mCE"] == pytest.approx(np.mean(relative))


def test_alexnet_has_an_mce_of_1():
    n = 10_000
    results = all_corruptions(accuracy={name: [1 - ALEXNET_ERROR[name]] * 5 for name in TEST_CORRUPTIONS}, n=n)
    results.append(on_imagenet(make_result(make_model(), 1 - 0.435, n=n)))
    computed = values(results)
    assert computed["mCE", "mCE"] == pytest.approx(1, abs=1e-3)
    assert computed["relative_mCE", "relative_mCE"] == pytest.approx(1, abs=5e-3)  # accuracies are multiples of 1/n


def test_missing_benchmarks(results):
    assert set(values(results[:-1])) == {(f"c_{name}", "corruption_error") for name in TEST_CORRUPTIONS[:-1]}
    for stored in (True, False):
        assert values(corrupted("fog", [0.9, 0.5], stored, severities=(1, 5))) == {}
    without_clean = values(results[1:])
    assert ("mCE", "mCE") in without_clean
    assert ("relative_mCE", "relative_mCE") not in without_clean


def test_mce_needs_the_classes_of_imagenet(results):
    computed = values([dataclasses.replace(result, class_names=["cat", "dog"]) for result in results])
    assert ("mean_corruption_error", "mean_corruption_error") in computed
    assert not {("mCE", "mCE"), ("relative_mCE", "relative_mCE")} & computed.keys()


def test_different_images_are_not_averaged(results):
    """For example, a folder that was copied only in part."""
    name = TEST_CORRUPTIONS[2]
    others = [result for result in results if result.corruption != name]
    computed = values([*others, *corrupted(name, ACCURACY[name], n=40)])
    assert (f"c_{name}", "corruption_error") in computed
    assert ("mCE", "mCE") not in computed


def test_corruptions_on_the_fly_have_metrics_of_their_own(results):
    better = {name: np.minimum(1, accuracy + 0.1) for name, accuracy in ACCURACY.items()}
    computed = values([*results, *all_corruptions(False, better)])
    for metric in ("mean_corruption_error", "mCE", "relative_mCE"):
        assert computed[f"{metric}_on_the_fly", f"{metric}_on_the_fly"] < computed[metric, metric] - 0.05
    only_on_the_fly = values([results[0], *all_corruptions(False, better)])
    assert not {("mCE", "mCE"), ("relative_mCE", "relative_mCE")} & only_on_the_fly.keys()


def test_errors_are_in_the_main_table_with_an_interval(results):
    rows = tabulate(results, {})
    row = rows[rows["metric"] == "mean_corruption_error"].iloc[0]
    assert row["low"] < row["value"] < row["high"]
    assert "mean_corruption_error" in set(main_rows(aggregate_seeds(rows))["metric"])
