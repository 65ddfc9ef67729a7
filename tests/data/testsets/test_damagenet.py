import numpy as np
import pytest
import torch
from PIL import Image

from nsaug.data import DAmageNet, MissingData
from nsaug.utils.errors import UserError
from tests.conftest import place
from tests.data.helpers import config, open_test
from tests.data.testsets.helpers import CONFIG, save_validation_images


@pytest.fixture
def numbers(sample, tmp_path):
    """Image numbers by class index, in another order; DAmageNet has another file extension than ImageNet."""
    numbers = {label: 49_999 - 3 * label for label in range(0, 1000, 67)}
    save_validation_images(sample, tmp_path / "imagenet", numbers)
    for label, number in numbers.items():
        place(sample[label], tmp_path / "DAmageNet" / f"ILSVRC2012_val_{number:08d}.png", size=224)
    return numbers


def damagenet(tmp_path, labels):
    return DAmageNet(root=str(tmp_path / "DAmageNet"), labels=str(labels))


def test_labels_are_joined_by_number_and_pixels_are_kept(numbers, tmp_path):
    data = open_test(damagenet(tmp_path, tmp_path / "imagenet"), CONFIG)
    assert len(data.images) == len(numbers)
    for index in range(len(numbers)):
        pixels, label, name = data.images[index]
        assert name == f"ILSVRC2012_val_{numbers[label]:08d}.png"
        with Image.open(data.root / name) as stored:
            expected = torch.tensor(np.array(stored)).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, expected)
    assert not any("resized" in note for note in data.notes)
    data.configure(config(384))
    assert data.images[0][0].shape == (3, 384, 384)
    assert "resized from 224 to 384 px" in data.notes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_label_file(numbers, tmp_path, encoding):
    listed = dict(list(numbers.items())[2:])
    labels = tmp_path / "val.txt"
    text = "".join(f"ILSVRC2012_val_{number:08d}.JPEG {label}\n" for label, number in listed.items())
    labels.write_text(text, encoding=encoding)
    data = open_test(damagenet(tmp_path, labels), CONFIG)
    assert sorted(data.images.labels) == sorted(listed)
    assert f"2 images have no label in {labels}" in data.notes


def test_unusable_labels_are_refused(numbers, tmp_path):
    labels = tmp_path / "val.txt"
    for text in ("x.JPEG n01440764\n", "x.JPEG 1000\n", "x.JPEG \u00b2\n", "x.JPEG -1\n", "5\n", "x.JPEG 1.5\n"):
        labels.write_text(text)
        with pytest.raises(UserError, match="each line has to be a file name and a class index"):
            damagenet(tmp_path, labels).setup("test")
    for content in (b"\xff\xfea\0", b""):
        labels.write_bytes(content)
        with pytest.raises(UserError, match=r"data.labels=.*/val.txt is (not text in UTF-8|empty): name a text file"):
            damagenet(tmp_path, labels).setup("test")
    labels.write_text("other.JPEG 3\n")
    with pytest.raises(MissingData, match=r"no image in .*/DAmageNet has a label in .*/val.txt"):
        damagenet(tmp_path, labels).setup("test")
    with pytest.raises(MissingData, match=r"its labels are those of ImageNet's val/WNID/"):
        damagenet(tmp_path, tmp_path / "nowhere").setup("test")
