import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from nsaug.data import CIFAR10
from nsaug.data.names import CIFAR10_CLASSES
from nsaug.utils.errors import UserError
from tests.conftest import SHARED
from tests.data.helpers import config, fit_data, make_tree, open_test


def test_class_folders(tmp_path):
    make_tree(tmp_path / "train", CIFAR10_CLASSES, size=(32, 32))
    image, label, name = fit_data(CIFAR10(root=str(tmp_path)), config(32)).train_set[7]
    assert CIFAR10_CLASSES[label] == name.split("/")[1]
    assert image.shape == (3, 32, 32)


def test_torchvision_files(tmp_path, monkeypatch):
    class Stored:
        def __init__(self, root, train, download):
            self.data = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
            self.targets = [index % 10 for index in range(20)]

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    image, label, name = open_test(CIFAR10(root=str(tmp_path)).test_dataset(), config(32)).images[13]
    assert (label, name) == (3, "test/00013")
    torch.testing.assert_close(image, torch.full((3, 32, 32), 13 / 255))


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.download=true downloads it, data.root=PATH names your own copy"):
        CIFAR10(root=str(tmp_path)).setup("fit")


@pytest.mark.skipif(not (SHARED / "cifar10.tar.xz").is_file(), reason=f"no real CIFAR-10 at {SHARED}")
def test_real_images(tmp_path):
    with tarfile.open(SHARED / "cifar10.tar.xz") as tar:  # the first few hundred files: unpacking all takes long
        for number, member in enumerate(tar):
            if member.isfile():
                tar.extract(member, tmp_path, filter="data")
            if number > 300:
                break
    root = tmp_path / "cifar10"
    split = "train" if (root / "train").is_dir() else "val"
    image, label, name = open_test(CIFAR10(root=str(root), test=split).test_dataset(), config(32)).images[0]
    assert CIFAR10_CLASSES[label] == name.split("/")[1]
    with Image.open(root / name) as file:
        stored = torch.tensor(np.array(file)).permute(2, 0, 1) / 255
    torch.testing.assert_close(image, stored)
