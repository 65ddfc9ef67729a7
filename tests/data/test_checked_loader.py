"""Batches of a user's loader: what is wrong with them, in one line."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nsaug.data.checked_loader import BatchFormat, CheckedLoader
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 9, 1, 1, 2])
FORMAT = BatchFormat("loader", (3, 8, 8), torch.float32, 10)


def error_of(batch, batch_format=FORMAT):
    with pytest.raises(UserError) as error:
        list(CheckedLoader([batch], batch_format))
    return str(error.value)


def test_format_is_that_of_the_model():
    assert BatchFormat.of(tiny_vit(), "loader") == FORMAT
    assert BatchFormat.of(tiny_vit(num_classes=3).double(), "val", 2) == BatchFormat(
        "val", (3, 8, 8), torch.float64, 3, num_views=2
    )


def test_batches_pass_unchanged():
    loader = CheckedLoader(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), FORMAT)
    assert len(loader) == 2
    for _ in range(2):  # epochs
        batches = list(loader)
        assert torch.equal(torch.cat([images for images, _, _ in batches]), IMAGES)
        assert torch.equal(torch.cat([labels for _, labels, _ in batches]), LABELS)
    assert loader.batch_size == 4


def test_precision_and_further_parts():
    ((images, labels, _),) = CheckedLoader([(IMAGES.double(), LABELS.int(), "anything", None)], FORMAT)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_rounding_errors_at_the_bounds_are_cut_off():
    ((images, _, _),) = CheckedLoader([(IMAGES * 1.0006 - 0.0003, LABELS)], FORMAT)
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images, IMAGES, atol=4e-4, rtol=0)


NORMALIZED = "nsaug normalizes inside the model, leave Normalize out of the transform"


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        ((IMAGES - 0.45) / 0.22, NORMALIZED),
        (IMAGES * 255, "divide them by 255"),
        (IMAGES * 1.1 - 0.05, f"clamp them to [0, 1], or, if they are normalized: {NORMALIZED}"),
        (IMAGES * 1.2, "clamp them to [0, 1]"),
        (IMAGES * torch.nan, "look for divisions by zero"),
    ],
)
def test_range_of_images(images, advice):
    line = error_of((images, LABELS))
    low, high = (f"{float(bound):g}" for bound in images.aminmax())
    assert line.startswith(f"loader yields images with values from {low} to {high}, not in [0, 1]: {advice}")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES.mul(255).byte(), LABELS), "images of torch.uint8: divide them by 255, as floats in [0, 1]"),
        ((IMAGES[:, :1], LABELS), "images of shape (6, 1, 8, 8), not (B, 3, 8, 8): resize images to the input of the"),
        ((IMAGES[:, :, 1:], LABELS), "images of shape (6, 3, 7, 8), not (B, 3, 8, 8)"),
        ((IMAGES[0], LABELS[0]), "images of shape (3, 8, 8), not (B, 3, 8, 8)"),
        ((IMAGES[:0], LABELS[:0]), "images of shape (0, 3, 8, 8), not (B, 3, 8, 8)"),
        ((IMAGES.numpy(), LABELS), "images as ndarray: they should be a tensor (B, 3, 8, 8)"),
        ((IMAGES, LABELS.tolist()), "labels as list: they should be a tensor (B,)"),
        ((IMAGES, LABELS.float()), "labels of torch.float32 and shape (6,): they should be class indices, (B,)"),
        ((IMAGES, LABELS[:, None]), "labels of torch.int64 and shape (6, 1): they should be class indices, (B,)"),
        ((IMAGES, LABELS[:3]), "a batch of 6 images and 3 labels"),
        ((IMAGES, LABELS[:0]), "a batch of 6 images and 0 labels"),
        ((IMAGES, LABELS > 2), "labels of torch.bool and shape (6,): they should be class indices, (B,)"),
        ((IMAGES, LABELS + 1), "the label 10, and the model has the classes 0 to 9: build it with more, such as "),
        ((IMAGES, LABELS - 1), "the label -1: class indices start at 0"),
        ({"image": IMAGES, "label": LABELS}, "a dict: a batch should be a tuple (images, labels)"),
        (IMAGES, "a Tensor: a batch should be a tuple (images, labels)"),
        ((IMAGES,), "a tuple of 1: a batch should be a tuple (images, labels)"),
    ],
)
def test_shapes_types_and_labels(batch, message):
    assert error_of(batch).startswith(f"loader yields {message}")


def test_views():
    two_views = BatchFormat("loader", (3, 8, 8), torch.float32, 10, num_views=2)
    batch = torch.stack([IMAGES, IMAGES], 1), LABELS
    assert len(list(CheckedLoader([batch], two_views))) == 1
    expected = "loader yields images of shape (6, 3, 8, 8), not (B, 2, 3, 8, 8): this method takes 2 views of every"
    assert error_of((IMAGES, LABELS), two_views).startswith(expected)
    assert error_of(batch).startswith("loader yields images of shape (6, 2, 3, 8, 8), not (B, 3, 8, 8)")


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(IMAGES, LABELS, strict=True)


class Broken:
    """A loader that yields less than it announces."""

    def __init__(self, count=0):
        self.count = count

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(IMAGES, LABELS)] * self.count)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "loader is empty"),
        (Broken(), "loader yields 0 batches, and its length is 3: its __len__ should return the number of batches"),
        (Broken(2), "loader yields 2 batches, and its length is 3"),
        (DataLoader(Stream(), batch_size=2), "loader has no length, which the learning rate depends on"),
        (iter([(IMAGES, LABELS)]), "loader has no length"),
        (3, "loader is a int: pass a DataLoader, or a list of (images, labels)"),
    ],
)
def test_loaders_without_batches(loader, message):
    with pytest.raises(UserError) as error:
        list(CheckedLoader(loader, FORMAT))
    assert str(error.value).startswith(message)
