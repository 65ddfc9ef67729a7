"""Images with an id and a label, by position."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nsaug.utils.errors import UserError, first_line

Label = int | tuple[int, ...]
"""The class index that is right, or all that are."""
PAD_LABEL = -1
"""Fills up a set of labels in a batch."""


class MissingData(UserError):
    """A data set that is not where it was looked for."""


class UnreadableImage(UserError):
    """An image of a data set that cannot be opened or decoded."""


def read_image(file: Any, name: str) -> Image.Image:
    """An image file or its path, RGB.

    Raises:
        UnreadableImage: it cannot be opened, or is cut off; the message calls it by its name.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name} cannot be read: {first_line(error)}") from error


class Loader(Protocol):
    """Where a source's images come from, by position. A class, so that worker processes can be handed one."""

    def __call__(self, index: int) -> Any:
        """The image, RGB; whatever it is, the set's transform takes it.

        Raises:
            UnreadableImage: it cannot be opened or decoded.
        """
        ...

    def fingerprint(self, index: int) -> str:
        """Text that changes when the image does."""
        ...


@dataclass
class ImageSet(Dataset[tuple[Tensor, int | Tensor, str]]):
    """Images by position: each an RGB image, its label and an id that no other image of the source has.

    All labels are class indices, or all are sets of them.
    """

    ids: Sequence[str]
    labels: Sequence[Label]
    load: Loader
    transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor, str]:
        """The image (3, H, W) in [0, 1], its label, a set of labels as (k,) filled up with `NO_CLASS`, and its id."""
        assert self.transform is not None, "call ImageDataModule.configure_for before loading images"
        label = self.labels[index]
        told = torch.tensor([*label, *[PAD_LABEL] * (self._most - len(label))]) if isinstance(label, tuple) else label
        return self.transform(self.load(index)), told, self.ids[index]

    @property
    def has_label_sets(self) -> bool:
        return any(isinstance(label, tuple) for label in self.labels)

    @cached_property
    def _most(self) -> int:
        """Size of the largest set of labels."""
        return max(len(label) for label in self.labels if isinstance(label, tuple))

    def digest(self) -> str:
        """SHA-256 of what the images are: ids, labels, and each image's content (of a file: its size and date)."""
        total = hashlib.sha256()
        for index, (image, label) in enumerate(zip(self.ids, self.labels, strict=True)):
            total.update(f"{image}\0{label}\0{self.load.fingerprint(index)}\n".encode())
        return total.hexdigest()

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images at these positions, in this order."""
        positions = list(indices)
        ids, labels = [self.ids[i] for i in positions], [self.labels[i] for i in positions]
        return ImageSet(ids, labels, _Reindexed(self.load, positions), self.transform)


@dataclass(frozen=True)
class _Reindexed:
    """A loader seen through a list of positions."""

    load: Loader
    positions: list[int]

    def __call__(self, index: int) -> Any:
        return self.load(self.positions[index])

    def fingerprint(self, index: int) -> str:
        return self.load.fingerprint(self.positions[index])


def label_set(label: Label) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def preview(names: Sequence[str]) -> str:
    """The first few of them, in a line."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
