"""CIFAR-10-C as it is published."""

from typing import Any

import numpy as np

from nsaug.data.arrays import ArrayFileLoader
from nsaug.data.dataset import ImageSet
from nsaug.data.names import CIFAR10_CLASSES
from nsaug.data.testsets.cifar10_variants import are_labels
from nsaug.data.testsets.stored_corruptions import NUM_SEVERITIES, StoredCorruption
from nsaug.utils.errors import UserError
from nsaug.utils.types import validate_args


class CIFAR10C(StoredCorruption):
    """root/CORRUPTION.npy, (50,000, 32, 32, 3) ordered by severity, and root/labels.npy (arXiv 1903.12261)."""

    title = "CIFAR-10-C"
    folder = "CIFAR-10-C"
    homepage = "https://zenodo.org/records/2535967"
    stored_size = 32
    images_expected = 10_000

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = CIFAR10_CLASSES

    def list_images(self) -> ImageSet:
        path = self.root / f"{self.corruption}.npy"
        images = self.load_array(path, mmap_mode="r")
        labels = self.load_array(self.root / "labels.npy")
        count, remainder = divmod(len(images), NUM_SEVERITIES)
        if (
            images.shape[1:] != (32, 32, 3)
            or images.dtype != np.uint8
            or remainder
            or not are_labels(labels, len(images))
        ):
            raise UserError(
                f"{path} has shape {images.shape} and type {images.dtype}, labels.npy {labels.shape} and"
                f" {labels.dtype}: expected the published arrays, (50000, 32, 32, 3) in uint8 and (50000,) with labels"
                " from 0 to 9"
            )
        labels = labels.reshape(NUM_SEVERITIES, count)
        if (labels != labels[0]).any():
            raise UserError(f"{self.root / 'labels.npy'}: labels have to be the same at all severities")
        ids = [f"cifar10-c/{index:05d}" for index in range(count)]
        start = (self.severity - 1) * count
        return ImageSet(ids, [int(label) for label in labels[0]], ArrayFileLoader(str(path), start))
