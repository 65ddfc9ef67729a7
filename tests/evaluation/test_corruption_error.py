"""Errors over all corruptions against their formulas, and the conditions they need."""

import numpy as np
import pytest

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.data import ImageNet, ImageNetC, ImageNetV2
from nsaug.evaluation import Benchmark, CorruptionError, NamedBenchmark
from nsaug.evaluation.corruption_error import ALEXNET_ERROR
from nsaug.evaluation.reporting.aggregate import aggregate_seeds, tabulate
from nsaug.evaluation.reporting.formatting import main_rows
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import CLEAN, make_model, make_result

ACCURACY = {name: np.linspace(0.9, 0.9 - 0.04 * i, 5) for i, name in enumerate(TEST_CORRUPTIONS)}


def on_the_fly(name, severities=(1, 2, 3, 4, 5)):
    benchmark = Benchmark(corruption=Corruption(name=name), param="severity", strengths=severities)
    return NamedBenchmark(name, benchmark)


def stored(name, severities=(1, 2, 3, 4, 5)):
    return NamedBenchmark(name, Benchmark(data=ImageNetC(root="nowhere", corruption=name, severities=severities)))


def all_corruptions(make_benchmark, accuracy=ACCURACY, n=50):
    return [make_result(make_model(), make_benchmark(name), accuracy[name], n=n) for name in TEST_CORRUPTIONS]


@pytest.fixture
def results():
    return [make_result(make_model(), CLEAN, [0.94]), *all_corruptions(stored)]


def values(rows):
    return {(row["benchmark"], row["metric"]): row["value"] for row in rows}


def test_formulas(results):
    errors = {name: 1 - np.round(ACCURACY[name] * 50) / 50 for name in TEST_CORRUPTIONS}  # 50 images
    computed = values(CorruptionError(alexnet=True).rows(results))
    assert computed["fog", "corruption_error"] == pytest.approx(errors["fog"].mean())
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
    results = all_corruptions(stored, {name: [1 - ALEXNET_ERROR[name]] * 5 for name in TEST_CORRUPTIONS}, n)
    results.append(make_result(make_model(), CLEAN, [1 - 0.435], n=n))
    computed = values(CorruptionError(alexnet=True).rows(results))
    assert computed["mCE", "mCE"] == pytest.approx(1, abs=1e-3)
    assert computed["relative_mCE", "relative_mCE"] == pytest.approx(1, abs=5e-3)  # accuracies are multiples of 1/n


def test_missing_benchmarks(results):
    assert set(values(CorruptionError(alexnet=True).rows(results[:-1]))) == {
        (name, "corruption_error") for name in TEST_CORRUPTIONS[:-1]
    }
    for make_benchmark in (stored, on_the_fly):
        two_severities = make_result(make_model(), make_benchmark("fog", (1, 5)), [0.9, 0.5])
        assert CorruptionError().rows([two_severities]) == []
    without_clean = values(CorruptionError(alexnet=True).rows(results[1:]))
    assert ("mCE", "mCE") in without_clean
    assert ("relative_mCE", "relative_mCE") not in without_clean
    assert ("mCE", "mCE") not in values(CorruptionError().rows(results))


def test_different_images_are_not_averaged(results):
    """For example, a folder that was copied only in part."""
    results[3] = make_result(make_model(), results[3].named_benchmark, ACCURACY[TEST_CORRUPTIONS[2]], n=40)
    computed = values(CorruptionError(alexnet=True).rows(results))
    assert (TEST_CORRUPTIONS[2], "corruption_error") in computed
    assert ("mCE", "mCE") not in computed


def test_corruptions_on_the_fly_have_metrics_of_their_own(results):
    better = {name: np.minimum(1, accuracy + 0.1) for name, accuracy in ACCURACY.items()}
    computed = values(CorruptionError(alexnet=True).rows([*results, *all_corruptions(on_the_fly, better)]))
    for metric in ("mean_corruption_error", "mCE", "relative_mCE"):
        assert computed[f"{metric}_on_the_fly", f"{metric}_on_the_fly"] < computed[metric, metric] - 0.05
    only_on_the_fly = values(CorruptionError(alexnet=True).rows([results[0], *all_corruptions(on_the_fly, better)]))
    assert not {("mCE", "mCE"), ("relative_mCE", "relative_mCE")} & only_on_the_fly.keys()


def test_mce_needs_imagenet():
    CorruptionError(alexnet=True).check(ImageNet(root="nowhere").test_dataset())
    CorruptionError().check(ImageNetV2(root="nowhere"))
    with pytest.raises(UserError, match="means nothing on other data"):
        CorruptionError(alexnet=True).check(ImageNetV2(root="nowhere"))


def test_errors_are_in_the_main_table_with_an_interval(results):
    rows = tabulate(results, None, CorruptionError())
    row = rows[rows["metric"] == "mean_corruption_error"].iloc[0]
    assert row["low"] < row["value"] < row["high"]
    assert "mean_corruption_error" in set(main_rows(aggregate_seeds(rows))["metric"])
