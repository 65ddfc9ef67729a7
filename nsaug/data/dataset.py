"""Images with an id and a label, accessed by position."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from nsaug.data.fingerprints import fingerprints
from nsaug.utils.errors import UserError, os_reason
from nsaug.utils.files import open_regular

Label = int | tuple[int, ...]
"""The correct class index, or all of them where several are correct."""
PAD_LABEL = -1
"""Pads the label sets of a batch to the same length."""


class MissingData(UserError):
    """A data set that is not at the configured path."""


class UnreadableImage(UserError):
    """An image that cannot be opened or decoded."""


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content rather than by extension. Pillow has others, some of which call programs."""
MAX_ASPECT_RATIO = 100
"""Resizing the short side to 224 px would make an image of 1 x 60,000 px 16 GB large."""
TIFF_TAGS = {"BitsPerSample": (258, 16), "PhotometricInterpretation": (262, 1), "SampleFormat": (339, 1)}
"""Number of a TIFF tag, and its value for gray levels from 0 (black) to 65535."""


def read_image(file: str | Path | IO[bytes], name: str) -> Image.Image:
    """Read an image file, given as a path or file object, as RGB with 8 bits per channel.

    Images of 16 bits are scaled over the full range of their type. Transparency is dropped, and the first frame of an
    animation is read. As in timm and torchvision, the orientation in EXIF data and color profiles are ignored.

    Args:
        file: the image.
        name: what error messages call the image.

    Raises:
        UnreadableImage: it cannot be opened, is damaged, has no fixed range (32 bits per channel, or signed), or is
            extremely long.
    """
    try:
        with (
            open_regular(file) if isinstance(file, str | Path) else nullcontext(file) as opened,
            Image.open(opened, formats=FORMATS) as image,
        ):
            return _to_rgb(image)
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # decoders raise almost any error for damaged files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is not an image of {', '.join(FORMATS)}" if unknown else os_reason(error)
        raise UnreadableImage(f"{name} cannot be read: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB; raises ValueError if its values have no known range."""
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"it has {image.width} x {image.height} px, and sides may differ by {MAX_ASPECT_RATIO} times")
    # Pillow reads a PGM file of 9 to 16 bits as 32 bits, scaled to 16.
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if has_16_bits and _has_tiff_tags(image, *TIFF_TAGS):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")  # Pillow would clip at 255
    if image.mode.startswith(("I", "F")) or not _has_tiff_tags(image, "SampleFormat"):
        raise ValueError(f"the range of its values (mode {image.mode}) is unknown: save it with 8 or 16 unsigned bits")
    return image.convert("RGB")


def _has_tiff_tags(image: Image.Image, *names: str) -> bool:
    """Whether the tags have the values of TIFF_TAGS; True for tags that are missing, and for other formats."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    expected = dict(TIFF_TAGS[name] for name in names)
    return all(np.all(np.asarray(tags.get(number, value)) == value) for number, value in expected.items())


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
        return hashlib.sha256("\n".join(self.fingerprints()).encode(errors="surrogatepass")).hexdigest()

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
