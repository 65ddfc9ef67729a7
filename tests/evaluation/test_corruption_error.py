"""The errors over all corruptions against sums written out, and what they are refused for."""

import numpy as np
import pytest

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.data import ImageNet, ImageNetC, ImageNetV2
from nsaug.evaluation import Benchmark, CorruptionError, NamedBenchmark
from nsaug.evaluation.reporting.aggregate import grouped, tabulate
from nsaug.evaluation.reporting.formatting import headline
from nsaug.utils.errors import UserError
from tests.evaluation.conftest import CLEAN, outcome, subject

ACCURACY = {name: np.linspace(0.9, 0.9 - 0.04 * place, 5) for place, name in enumerate(TEST_CORRUPTIONS)}


def on_the_fly(name, severities=(1, 2, 3, 4, 5)):
    return NamedBenchmark(name, Benchmark(corruption=Corruption(name=name), vary="severity", values=severities))


def stored(name, severities=(1, 2, 3, 4, 5)):
    return NamedBenchmark(name, Benchmark(data=ImageNetC(root="nowhere", corruption=name, severities=severities)))


def all_of(made, accuracy=ACCURACY, n=50):
    return [outcome(subject(), made(name), accuracy[name], n=n) for name in TEST_CORRUPTIONS]


@pytest.fixture
def outcomes():
    return [outcome(subject(), CLEAN, [0.94]), *all_of(stored)]


def values(rows):
    return {(row["benchmark"], row["metric"]): row["value"] for row in rows}


def test_the_means(outcomes):
    errors = {name: 1 - np.round(ACCURACY[name] * 50) / 50 for name in TEST_CORRUPTIONS}  # 50 images
    found = values(CorruptionError(alexnet=True).rows(outcomes))
    assert found["fog", "corruption_error"] == pytest.approx(errors["fog"].mean())
    assert found["mean_corruption_error", "mean_corruption_error"] == pytest.approx(np.mean(list(errors.values())))
    # The numbers of the ImageNet-C repository, in percent.
    alexnet = dict(zip(TEST_CORRUPTIONS, [
        88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
        64.6056, 71.7840, 60.6500,
    ], strict=True))  # fmt: skip
    ratios = [100 * errors[name].sum() / (5 * alexnet[name]) for name in TEST_CORRUPTIONS]
    assert found["mCE", "mCE"] == pytest.approx(np.mean(ratios))
    relative = [(100 * errors[name].mean() - 6) / (alexnet[name] - 43.5) for name in TEST_CORRUPTIONS]
    assert found["relative_mCE", "relative_mCE"] == pytest.approx(np.mean(relative))


def test_alexnet_itself_has_an_mce_of_1():
    from nsaug.evaluation.corruption_error import ALEXNET

    n = 10_000
    found = all_of(stored, {name: [1 - ALEXNET[name]] * 5 for name in TEST_CORRUPTIONS}, n)
    found.append(outcome(subject(), CLEAN, [1 - 0.435], n=n))
    numbers = values(CorruptionError(alexnet=True).rows(found))
    assert numbers["mCE", "mCE"] == pytest.approx(1, abs=1e-3)
    assert numbers["relative_mCE", "relative_mCE"] == pytest.approx(1, abs=5e-3)  # errors are whole images


def test_what_is_missing_is_not_made_up(outcomes):
    assert set(values(CorruptionError(alexnet=True).rows(outcomes[:-1]))) == {
        (name, "corruption_error") for name in TEST_CORRUPTIONS[:-1]
    }
    for made in (stored, on_the_fly):
        assert CorruptionError().rows([outcome(subject(), made("fog", (1, 5)), [0.9, 0.5])]) == []
    without_clean = values(CorruptionError(alexnet=True).rows(outcomes[1:]))
    assert ("mCE", "mCE") in without_clean
    assert ("relative_mCE", "relative_mCE") not in without_clean
    assert ("mCE", "mCE") not in values(CorruptionError().rows(outcomes))


def test_severities_of_other_images_are_not_averaged(outcomes):
    """As where one folder was copied in part: means over different images are no mCE."""
    outcomes[3] = outcome(subject(), outcomes[3].entry, ACCURACY[TEST_CORRUPTIONS[2]], n=40)
    found = values(CorruptionError(alexnet=True).rows(outcomes))
    assert (TEST_CORRUPTIONS[2], "corruption_error") in found
    assert ("mCE", "mCE") not in found


def test_what_is_made_on_the_fly_is_a_number_of_its_own(outcomes):
    better = {name: np.minimum(1, accuracy + 0.1) for name, accuracy in ACCURACY.items()}
    found = values(CorruptionError(alexnet=True).rows([*outcomes, *all_of(on_the_fly, better)]))
    for metric in ("mean_corruption_error", "mCE", "relative_mCE"):
        assert found[f"{metric}_on_the_fly", f"{metric}_on_the_fly"] < found[metric, metric] - 0.05
    alone = values(CorruptionError(alexnet=True).rows([outcomes[0], *all_of(on_the_fly, better)]))
    assert not {("mCE", "mCE"), ("relative_mCE", "relative_mCE")} & alone.keys()


def test_mce_is_refused_off_imagenet():
    CorruptionError(alexnet=True).check(ImageNet(root="nowhere").test_dataset())
    CorruptionError().check(ImageNetV2(root="nowhere"))
    with pytest.raises(UserError, match="means nothing on other data"):
        CorruptionError(alexnet=True).check(ImageNetV2(root="nowhere"))


def test_they_stand_in_the_main_table_with_their_interval(outcomes):
    rows = tabulate(outcomes, None, CorruptionError())
    row = rows[rows["metric"] == "mean_corruption_error"].iloc[0]
    assert row["low"] < row["value"] < row["high"]
    assert "mean_corruption_error" in set(headline(grouped(rows))["metric"])
