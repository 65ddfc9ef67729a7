"""ImageNet-C and CIFAR-10-C as they are published: images that were corrupted once, for all to be judged on."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from nsaug.corruptions.corruption import CorruptionName
from nsaug.data.dataset import ImageSet, read_image
from nsaug.data.sources.cifar10 import CLASSES
from nsaug.data.sources.folder import file_fingerprint, find_images, folder_names, relative_ids
from nsaug.data.testsets.imagenet_variants import TestDataset
from nsaug.utils.errors import UserError
from nsaug.utils.types import validate_args

Severity = Annotated[int, Field(ge=1, le=5)]


class StoredCorruption(TestDataset):
    """The images of one corruption, each at all severities that are asked for: (severities, 3, H, W).

    Args:
        corruption: its name.
        severities: from 1 to 5.
        kwargs: as for `TestDataset`.
    """

    condition = "corrupted"

    @validate_args
    def __init__(
        self, *, corruption: CorruptionName, severities: tuple[Severity, ...] = (1, 2, 3, 4, 5), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.corruption = str(corruption)
        self.severities = severities

    @property
    def told(self) -> dict[str, Any]:
        return super().told | {"corruption": self.corruption, "severities": list(self.severities)}

    @property
    def notes(self) -> list[str]:
        return ["stored", *super().notes]

    def _set_transforms(self) -> None:
        super()._set_transforms()
        if self.test_set is not None and self.test_set.transform is not None:
            self.test_set.transform = _Each(self.test_set.transform)


@dataclass(frozen=True)
class _Each:
    """A transform of each image in a list."""

    transform: Any

    def __call__(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([self.transform(image) for image in images])


class ImageNetC(StoredCorruption):
    """root/CORRUPTION/SEVERITY/WNID/, or root/noise/CORRUPTION/... as unpacked (arXiv 1903.12261); 224 px.

    Images that some severity lacks are left out at all of them, so that severities are of the same images.
    """

    title = "ImageNet-C"
    homepage = "https://zenodo.org/records/2235448"
    stored_size = 224
    images_expected = 50_000

    def find(self) -> ImageSet:
        folder = self._folder()
        index = {wnid: label for label, wnid in enumerate(self.class_names)}
        each = []
        for severity in self.severities:
            below = folder / str(severity)
            if not below.is_dir():
                raise self.missing(f"there is no folder {below}")
            if unknown := [name for name in folder_names(below) if name not in index]:
                raise UserError(f"{below} holds {len(unknown)} folders that are no class, such as {unknown[0]}")
            each.append(set(relative_ids(find_images(below), below)))
        ids = sorted(set.intersection(*each))
        if not ids:
            raise self.missing(f"{folder} holds no images in SEVERITY/WNID/")
        folders = [str(folder / str(severity)) for severity in self.severities]
        return ImageSet(ids, [index[name.split("/")[0]] for name in ids], _Severities(folders, ids))

    def _folder(self) -> Path:
        for folder in (self.root, *(self.root / name for name in folder_names(self.root))):
            if (folder / self.corruption).is_dir():
                return folder / self.corruption
        raise self.missing(f"there is no folder {self.root / self.corruption}, nor one in a folder of {self.root}")


@dataclass(frozen=True)
class _Severities:
    """An image at each severity, from a folder for each."""

    folders: list[str]
    ids: list[str]

    def __call__(self, index: int) -> list[Image.Image]:
        paths = [os.path.join(folder, self.ids[index]) for folder in self.folders]
        return [read_image(path, path) for path in paths]

    def fingerprint(self, index: int) -> str:
        return " ".join(file_fingerprint(os.path.join(folder, self.ids[index])) for folder in self.folders)


class CIFAR10C(StoredCorruption):
    """root/CORRUPTION.npy, (50,000, 32, 32, 3) by severity, and root/labels.npy (arXiv 1903.12261)."""

    title = "CIFAR-10-C"
    homepage = "https://zenodo.org/records/2535967"
    stored_size = 32
    images_expected = 10_000

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = CLASSES

    def find(self) -> ImageSet:
        path = self.root / f"{self.corruption}.npy"
        images, labels = self._array(path), np.asarray(self._array(self.root / "labels.npy"))
        count, left = divmod(len(images), len(SEVERITIES))
        if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or left or labels.shape != (len(images),):
            raise UserError(
                f"{path} holds {images.shape} in {images.dtype} and labels.npy {labels.shape}: expected"
                " (50000, 32, 32, 3) in uint8 and (50000,), the published arrays"
            )
        blocks = labels.reshape(len(SEVERITIES), count)
        if (blocks != blocks[0]).any() or blocks.min() < 0 or blocks.max() >= len(CLASSES):
            raise UserError(f"{self.root / 'labels.npy'}: the severities' labels differ, or are not from 0 to 9")
        starts = [(severity - 1) * count for severity in self.severities]
        ids = [f"cifar10-c/{index:05d}" for index in range(count)]
        return ImageSet(ids, [int(label) for label in blocks[0]], _Blocks(str(path), starts))

    def _array(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise self.missing(f"there is no file {path}")
        try:
            return np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:  # what numpy says of a file that is shorter than its header
            raise self.missing(f"{path} is cut off or damaged ({path.stat().st_size:,} bytes)") from error


SEVERITIES = range(1, 6)


@dataclass(frozen=True)
class _Blocks:
    """An image at each severity, from one array that holds a severity after the other."""

    path: str
    starts: list[int]

    def __call__(self, index: int) -> list[Image.Image]:
        stored = np.load(self.path, mmap_mode="r")
        return [Image.fromarray(stored[start + index]) for start in self.starts]

    def fingerprint(self, index: int) -> str:
        return f"{index} {file_fingerprint(self.path)}"
