"""The errors over all corruptions against sums written out, and what they are refused for."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from nsaug.corruptions import TEST, Corruption
from nsaug.evaluation import Benchmark, CorruptionError, Entry
from nsaug.evaluation.table import grouped, tabulate
from nsaug.evaluation.views import headline
from nsaug.settings import NsaugError
from tests.evaluation.conftest import CLEAN, outcome, subject

ACCURACY = {name: np.linspace(0.9, 0.9 - 0.04 * place, 5) for place, name in enumerate(TEST)}


@pytest.fixture
def outcomes():
    found = [outcome(subject(), CLEAN, [0.94])]
    for name in TEST:
        entry = Entry(name, Benchmark(corruption=Corruption(name=name), vary="severity", values=(1, 2, 3, 4, 5)))
        found.append(outcome(subject(), entry, ACCURACY[name]))
    return found


def values(rows):
    return {(row["benchmark"], row["metric"]): row["value"] for row in rows}


def test_the_means(outcomes):
    errors = {name: 1 - np.round(ACCURACY[name] * 50) / 50 for name in TEST}  # 50 images
    found = values(CorruptionError(alexnet=True).rows(outcomes))
    assert found["fog", "corruption_error"] == pytest.approx(errors["fog"].mean())
    assert found["mean_corruption_error", "mean_corruption_error"] == pytest.approx(np.mean(list(errors.values())))
    # The numbers of the ImageNet-C repository, in percent.
    alexnet = dict(zip(TEST, [
        88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
        64.6056, 71.7840, 60.6500,
    ], strict=True))  # fmt: skip
    ratios = [100 * errors[name].sum() / (5 * alexnet[name]) for name in TEST]
    assert found["mCE", "mCE"] == pytest.approx(np.mean(ratios))
    relative = [(100 * errors[name].mean() - 6) / (alexnet[name] - 43.5) for name in TEST]
    assert found["relative_mCE", "relative_mCE"] == pytest.approx(np.mean(relative))


def test_alexnet_itself_has_an_mce_of_1():
    from nsaug.evaluation.corruption_error import ALEXNET

    n, found = 10_000, []
    for name in TEST:
        entry = Entry(name, Benchmark(corruption=Corruption(name=name), vary="severity", values=(1, 2, 3, 4, 5)))
        found.append(outcome(subject(), entry, [1 - ALEXNET[name]] * 5, n=n))
    found.append(outcome(subject(), CLEAN, [1 - 0.435], n=n))
    numbers = values(CorruptionError(alexnet=True).rows(found))
    assert numbers["mCE", "mCE"] == pytest.approx(1, abs=1e-3)
    assert numbers["relative_mCE", "relative_mCE"] == pytest.approx(1, abs=5e-3)  # errors are whole images


def test_what_is_missing_is_not_made_up(outcomes):
    assert set(values(CorruptionError(alexnet=True).rows(outcomes[:-1]))) == {
        (name, "corruption_error") for name in TEST[:-1]
    }
    entry = Entry("fog", Benchmark(corruption=Corruption(name="fog"), vary="severity", values=(1, 5)))
    assert CorruptionError().rows([outcome(subject(), entry, [0.9, 0.5])]) == []
    without_clean = values(CorruptionError(alexnet=True).rows(outcomes[1:]))
    assert ("mCE", "mCE") in without_clean
    assert ("relative_mCE", "relative_mCE") not in without_clean
    assert ("mCE", "mCE") not in values(CorruptionError().rows(outcomes))


def test_mce_is_refused_off_imagenet():
    CorruptionError(alexnet=True).check(ImageNetInfo("imagenet-1k").label_names())
    CorruptionError().check(["cat", "dog"])
    with pytest.raises(NsaugError, match="means nothing on other data"):
        CorruptionError(alexnet=True).check(["cat", "dog"])


def test_they_stand_in_the_main_table_with_their_interval(outcomes):
    rows = tabulate(outcomes, None, CorruptionError())
    row = rows[rows["metric"] == "mean_corruption_error"].iloc[0]
    assert row["low"] < row["value"] < row["high"]
    assert "mean_corruption_error" in set(headline(grouped(rows))["metric"])
