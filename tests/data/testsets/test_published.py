"""What all published test sets have in common."""

import pytest

from nsaug.data import ImageNetSketch, MissingData, UnreadableImage
from nsaug.data.datamodule import ImageDataModule
from nsaug.data.names import wnids
from nsaug.data.testsets import TEST_SETS
from nsaug.utils.errors import UserError
from tests.conftest import place
from tests.data.helpers import open_test
from tests.data.testsets.helpers import CONFIG

OPTIONS = {
    "damagenet": {"labels": "nowhere"},
    "imagenet_c": {"corruption": "fog", "severity": 1},
    "imagenet_3dcc": {"corruption": "flash", "severity": 1},
    "imagenet_c_bar": {"corruption": "sparkles", "severity": 1},
    "cifar10_c": {"corruption": "fog", "severity": 1},
}
CASES = [(test_set, OPTIONS.get(name, {})) for name, test_set in TEST_SETS.items()]


def test_folders_are_the_documented_ones():
    assert {name: test_set.folder for name, test_set in TEST_SETS.items()} == {
        "real": "imagenet", "imagenet_v2": "imagenetv2", "imagenet_a": "imagenet-a", "imagenet_r": "imagenet-r",
        "imagenet_sketch": "imagenet-sketch", "stylized_imagenet": "stylized-imagenet", "damagenet": "DAmageNet",
        "objectnet": "objectnet-1.0", "imagenet_c": "imagenet-c", "imagenet_3dcc": "imagenet-3dcc",
        "imagenet_c_bar": "imagenet-c-bar", "cifar10_c": "CIFAR-10-C", "cifar10_1": "cifar-10.1",
        "cifar10_2": "cifar-10.2", "cue_conflict": "cue-conflict",
    }  # fmt: skip


@pytest.mark.parametrize(("test_set", "options"), CASES)
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


@pytest.mark.parametrize(("test_set", "options"), CASES)
def test_test_sets_are_for_evaluation_only(tmp_path, test_set, options):
    data = test_set(root=str(tmp_path), **options)
    assert not isinstance(data, ImageDataModule)
    with pytest.raises(UserError, match="is for evaluation only: train on other data, such as data=imagenet"):
        data.setup("fit")
    with pytest.raises(ValueError, match="hflip"):
        test_set(root=str(tmp_path), hflip=0.5, **options)


def test_unreadable_images(sample, tmp_path):
    for label in (3, 500, 999):
        place(sample[label], tmp_path / wnids()[label] / "x.jpg")
    truncated = tmp_path / wnids()[500] / "x.jpg"
    truncated.write_bytes(truncated.read_bytes()[:900])
    place(sample[7], tmp_path / wnids()[7] / "x.jpg")
    (tmp_path / wnids()[7] / "x.jpg").write_bytes(b"")
    (tmp_path / wnids()[3] / "x.jpg").write_bytes(b"not an image")
    data = open_test(ImageNetSketch(root=str(tmp_path)), CONFIG)
    for label in (3, 7, 500):
        with pytest.raises(UnreadableImage, match=f"{wnids()[label]}/x.jpg cannot be read"):
            data.images[data.images.labels.index(label)]
    assert data.images[data.images.labels.index(999)][1] == 999
