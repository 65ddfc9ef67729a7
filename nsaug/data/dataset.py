"""Images with an id and a label, accessed by position."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nsaug.data.fingerprints import fingerprints
from nsaug.utils.errors import UserError, first_line

Label = int | tuple[int, ...]
"""The correct class index, or all of them where several are correct."""
PAD_LABEL = -1
"""Pads the label sets of a batch to the same length."""


class MissingData(UserError):
    """A data set that is not at the configured path."""


class UnreadableImage(UserError):
    """An image that cannot be opened or decoded."""


def read_image(file: Any, name: str) -> Image.Image:
    """Read an image file, given as a path or file object, as RGB.

    Args:
        name: what error messages call the image.

    Raises:
        UnreadableImage: it cannot be opened, or is truncated.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name} cannot be read: {first_line(error)}") from error


class Loader(Protocol):
    """Loads the images of a source by position.

    Has to be picklable, for worker processes, and safe to call from several threads.
    """

    def __call__(self, index: int) -> Any:
        """Load an RGB image, or whatever the transform of the image set takes.

        Raises:
            UnreadableImage: it cannot be opened or decoded.
        """
        ...

    def fingerprint(self, index: int) -> str:
        """Text that depends on the content of the image alone, such as a hash of its bytes."""
        ...


@dataclass
class ImageSet(Dataset[tuple[Tensor, int | Tensor, str]]):
    """Images with a label and a unique id.

    Labels are class indices, or sets of them for all images.
    """

    ids: Sequence[str]
    labels: Sequence[Label]
    load: Loader
    transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor, str]:
        """Return image (3, H, W) in [0, 1], label, and id; a label set is (k,), padded with `PAD_LABEL`."""
        assert self.transform is not None, "call configure() of the data before loading images"
        label: int | Tensor | tuple[int, ...] = self.labels[index]
        if isinstance(label, tuple):
            label = torch.tensor([*label, *[PAD_LABEL] * (self._max_labels - len(label))])
        return self.transform(self.load(index)), label, self.ids[index]

    @property
    def has_label_sets(self) -> bool:
        return any(isinstance(label, tuple) for label in self.labels)

    @cached_property
    def _max_labels(self) -> int:
        return max(len(label) for label in self.labels if isinstance(label, tuple))

    def fingerprints(self) -> list[str]:
        """One text per image, with its id, label and content; does not depend on the machine.

        Raises:
            UserError: the loader has no method `fingerprint`.
        """
        contents = fingerprints(*_unwrap(self.load, range(len(self))))
        return [f"{i}\0{label}\0{content}" for i, label, content in zip(self.ids, self.labels, contents, strict=True)]

    def digest(self) -> str:
        """SHA-256 over the fingerprints of all images."""
        return hashlib.sha256("\n".join(self.fingerprints()).encode()).hexdigest()

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images at these positions, in this order."""
        positions = list(indices)
        ids, labels = [self.ids[i] for i in positions], [self.labels[i] for i in positions]
        return ImageSet(ids, labels, _Reindexed(*_unwrap(self.load, positions)), self.transform)


@dataclass(frozen=True)
class _Reindexed:
    """The images of a loader at a list of positions."""

    load: Loader
    positions: list[int]

    def __call__(self, index: int) -> Any:
        return self.load(self.positions[index])

    def fingerprint(self, index: int) -> str:
        return self.load.fingerprint(self.positions[index])


def _unwrap(load: Loader, positions: Sequence[int]) -> tuple[Loader, list[int]]:
    """The loader behind a subset, and the positions there."""
    if isinstance(load, _Reindexed):
        return load.load, [load.positions[position] for position in positions]
    return load, list(positions)


def label_set(label: Label) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def preview(names: Sequence[str]) -> str:
    """The first three names, as text."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
