"""What all published test sets have in common."""

import pytest

from nsaug.data import (
    CIFAR10C,
    DAmageNet,
    ImageNetA,
    ImageNetC,
    ImageNetR,
    ImageNetReaL,
    ImageNetSketch,
    ImageNetV2,
    MissingData,
    ObjectNet,
    StylizedImageNet,
    UnreadableImage,
)
from nsaug.data.datamodule import ImageDataModule
from nsaug.data.sources.imagenet import wnids
from nsaug.utils.errors import UserError
from tests.conftest import place
from tests.data.helpers import open_test
from tests.data.testsets.helpers import CONFIG

TEST_SETS = [
    (ImageNetA, {}), (ImageNetR, {}), (ImageNetV2, {}), (ImageNetSketch, {}), (StylizedImageNet, {}),
    (ImageNetReaL, {}), (DAmageNet, {"labels": "nowhere"}), (ObjectNet, {}),
    (ImageNetC, {"corruption": "fog", "severity": 1}), (CIFAR10C, {"corruption": "fog", "severity": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("test_set", "options"), TEST_SETS)
def test_missing_set_names_path_and_homepage(tmp_path, test_set, options):
    data = test_set(root=str(tmp_path / "none"), **options)
    with pytest.raises(MissingData) as error:
        data.setup("test")
    folder = tmp_path / "none"
    assert str(error.value) == f"{data.title}: there is no folder {folder}; it is published at {data.homepage}"
    assert data.homepage.startswith("https://")
    folder.mkdir()
    with pytest.raises(MissingData, match="it is published at"):  # an empty folder
        data.setup("test")


@pytest.mark.parametrize(("test_set", "options"), TEST_SETS)
def test_test_sets_are_for_evaluation_only(tmp_path, test_set, options):
    data = test_set(root=str(tmp_path), **options)
    assert not isinstance(data, ImageDataModule)
    with pytest.raises(UserError, match="is for evaluation only: train on other data, such as data=imagenet"):
        data.setup("fit")
    with pytest.raises(ValueError, match="hflip"):
        test_set(root=str(tmp_path), hflip=0.5, **options)


def test_unreadable_images_are_skipped(sample, tmp_path):
    for label in (3, 500, 999):
        place(sample[label], tmp_path / wnids()[label] / "x.jpg")
    truncated = tmp_path / wnids()[500] / "x.jpg"
    truncated.write_bytes(truncated.read_bytes()[:900])
    place(sample[7], tmp_path / wnids()[7] / "x.jpg")
    (tmp_path / wnids()[7] / "x.jpg").write_bytes(b"")
    data = open_test(ImageNetSketch(root=str(tmp_path), batch_size=2, num_workers=0), CONFIG)
    with pytest.raises(UnreadableImage, match=f"{wnids()[500]}/x.jpg cannot be read"):
        data.images[data.images.labels.index(500)]
    assert [labels.tolist() for _, labels, _ in data.readable_loader(data.images)] == [[3], [999]]
    (tmp_path / wnids()[3] / "x.jpg").write_bytes(b"not an image")
    assert next(iter(data.readable_loader(data.images))) is None
