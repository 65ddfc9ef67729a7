import random

import pytest

from nsaug.data.splits import is_held_out, record_split, split_changes


@pytest.mark.parametrize(("image_id", "share"), [("train/cat/0.png", 0.104704), ("é", 0.421366), ("\udcff", 0.630771)])
def test_membership_never_changes(image_id, share):
    """By the first bits of BLAKE2b: another function would evaluate old runs on images that they were trained on."""
    assert not is_held_out(image_id, share)
    assert is_held_out(image_id, share + 1e-5)


def test_fraction_is_kept():
    ids = [f"train/{label}/{number}.png" for label in range(10) for number in range(1000)]
    assert sum(is_held_out(image_id, 0.1) for image_id in ids) == pytest.approx(1000, abs=4 * 30)
    assert not any(is_held_out(image_id, 0) for image_id in ids)
    assert all(is_held_out(image_id, 1) for image_id in ids)


def test_records_name_what_changed():
    ids = [f"train/cat/{number}.png" for number in range(5)]
    shuffled = random.Random(0).sample(ids, 5)
    recorded = {"train": record_split(ids), "val": record_split(["a"])}
    assert split_changes(recorded, {"train": record_split(shuffled), "val": record_split(["a"])}) == ""
    fewer = {"train": record_split(ids[1:]), "val": record_split(["b"])}
    assert split_changes(recorded, fewer) == (
        "4 training images instead of 5, 1 validation images as before, but not the same ones"
    )
    assert split_changes(recorded, fewer, ["val"]) == "1 validation images as before, but not the same ones"
    assert record_split(["a", "\udcff"]) != record_split(["a"])
