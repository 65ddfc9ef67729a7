import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from nsaug.data.checked_loader import BatchFormat
from nsaug.evaluation import Subset
from nsaug.evaluation.loader_images import LoaderImages
from nsaug.utils.errors import UserError

IMAGES = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 10
FORMAT = BatchFormat("loader", (3, 8, 8), torch.float32, 10)
CONFIG = {"input_size": (3, 8, 8), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center", "mean": [0.5]}


def batches(batch_size, ids=None):
    parts = (IMAGES, LABELS) if ids is None else (IMAGES, LABELS, ids)
    return [tuple(part[start : start + batch_size] for part in parts) for start in range(0, 50, batch_size)]


def read(loader, keep=None):
    data = LoaderImages(loader, FORMAT, [str(index) for index in range(10)])
    data.keep = keep
    data.setup()
    data.configure(CONFIG)
    return data.images


@pytest.mark.parametrize("loader", [DataLoader(TensorDataset(IMAGES, LABELS), batch_size=7), iter(batches(7))])
def test_images_are_those_of_the_loader(loader):
    images = read(loader)
    assert images.ids[:2] == ["00000000", "00000001"]
    assert images.labels == LABELS.tolist()
    assert torch.equal(torch.stack([images[index][0] for index in range(50)]), IMAGES)


def test_ids_may_come_with_the_batches():
    names = [f"image{index}" for index in range(50)]
    assert read(batches(8, names)).ids == names
    with pytest.raises(UserError, match=r"loader yields ids that are not unique \(same is listed twice\): leave"):
        read(batches(8, ["same"] * 50))


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_only_images_that_a_subset_selects_are_kept(batch_size):
    subset, reference = Subset(seed=3, max_images=5), Subset(max_images=4)
    images, everything = read(batches(batch_size), keep=(subset, reference)), read(batches(7))
    assert set(images.load.images) == {*subset.select(everything)[0], *reference.select(everything)[0]}
    assert subset.select(images) == subset.select(everything)
    for position in images.load.images:
        assert torch.equal(images[position][0], IMAGES[position])


def test_fingerprints_depend_on_the_content():
    changed = [(images.clone(), labels) for images, labels in batches(10)]
    changed[0][0][3, 0, 0, 0] = 0.123
    same = [a == b for a, b in zip(read(batches(7)).fingerprints(), read(changed).fingerprints(), strict=True)]
    assert same == [index != 3 for index in range(50)]


@pytest.mark.parametrize(("loader", "message"), [([], "loader is empty"), (None, "loader is a NoneType: pass a")])
def test_loaders_without_images(loader, message):
    with pytest.raises(UserError, match=message):
        read(loader)
