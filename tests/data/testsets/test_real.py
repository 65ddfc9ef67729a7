from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from nsaug.data import ImageNetReaL, MissingData
from tests.data.helpers import open_test
from tests.data.testsets.helpers import CONFIG, save_validation_images


def test_labels_are_sets_by_image_number(sample, tmp_path):
    """The first five of the published file: [], [970, 795], [230, 231], [809], [516, 850]."""
    save_validation_images(sample, tmp_path, {65: 1, 795: 2, 230: 3, 809: 4, 516: 5})
    data = open_test(ImageNetReaL(root=str(tmp_path)), CONFIG)
    labels = {Path(name).stem[-1]: set(label) for name, label in zip(data.images.ids, data.images.labels, strict=True)}
    assert labels == {"2": {970, 795}, "3": {230, 231}, "4": {809}, "5": {516, 850}}
    _, labels, _ = next(iter(DataLoader(data.images, 4)))
    assert labels.shape == (4, 2)
    assert sorted(labels[labels >= 0].tolist()) == [230, 231, 516, 795, 809, 850, 970]
    assert "4 of 46,837 images are there" in data.notes


def test_numbers_without_a_label_are_left_out(sample, tmp_path):
    """Number 0 must not get the label of the last image."""
    save_validation_images(sample, tmp_path, {795: 2, 1: 0, 2: 50_000, 3: 50_001})
    data = open_test(ImageNetReaL(root=str(tmp_path)), CONFIG)
    assert sorted(Path(name).stem[-5:] for name in data.images.ids) == ["00002", "50000"]


def test_other_image_names_are_refused(sample):
    root = next(iter(sample.values())).parents[2]
    with pytest.raises(MissingData, match=r"ReaL: labels belong to names such as ILSVRC2012_val_00000001.JPEG, and"):
        ImageNetReaL(root=str(root)).setup("test")
