"""CIFAR-10-C as it is published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nsaug.data.dataset import ImageSet
from nsaug.data.files import file_fingerprint
from nsaug.data.sources.cifar10 import CLASSES
from nsaug.data.testsets.stored_corruptions import SEVERITIES, StoredCorruption
from nsaug.utils.errors import UserError
from nsaug.utils.types import validate_args


class CIFAR10C(StoredCorruption):
    """root/CORRUPTION.npy, (50,000, 32, 32, 3) ordered by severity, and root/labels.npy (arXiv 1903.12261)."""

    title = "CIFAR-10-C"
    homepage = "https://zenodo.org/records/2535967"
    stored_size = 32
    images_expected = 10_000

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = CLASSES

    def list_images(self) -> ImageSet:
        path = self.root / f"{self.corruption}.npy"
        images, labels = self._load(path), np.asarray(self._load(self.root / "labels.npy"))
        count, remainder = divmod(len(images), len(SEVERITIES))
        if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or remainder or labels.shape != (len(images),):
            raise UserError(
                f"{path} has shape {images.shape} and type {images.dtype}, labels.npy {labels.shape}: expected the"
                " published arrays, (50000, 32, 32, 3) in uint8 and (50000,)"
            )
        labels = labels.reshape(len(SEVERITIES), count)
        if (labels != labels[0]).any() or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise UserError(
                f"{self.root / 'labels.npy'}: labels have to be the same at all severities, and from 0 to 9"
            )
        starts = [(severity - 1) * count for severity in self.severities]
        ids = [f"cifar10-c/{index:05d}" for index in range(count)]
        return ImageSet(ids, [int(label) for label in labels[0]], _ArraySeverities(str(path), starts))

    def _load(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise self.missing(f"there is no file {path}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:  # numpy's errors for a file shorter than its header says
            raise self.missing(f"{path} is truncated or damaged ({path.stat().st_size:,} bytes)") from error


@dataclass(frozen=True)
class _ArraySeverities:
    """Loads an image at every severity, from one array that is ordered by severity."""

    path: str
    starts: list[int]

    def __call__(self, index: int) -> list[Image.Image]:
        stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return [Image.fromarray(stored[start + index]) for start in self.starts]

    def fingerprint(self, index: int) -> str:
        return f"{index} {file_fingerprint(self.path)}"
