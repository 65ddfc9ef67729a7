"""Images in arrays."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from nsaug.data.fingerprints import hash_bytes


@dataclass(frozen=True)
class ArrayLoader:
    """Loads images from an array in memory, (N, H, W, 3) or (N, H, W) in uint8."""

    images: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def fingerprint(self, index: int) -> str:
        return hash_bytes(self.images[index].tobytes())


@dataclass(frozen=True)
class ArrayFileLoader:
    """Loads images from consecutive rows of a file of numpy, (N, H, W, 3) in uint8; pickled without the array."""

    path: str
    start: int = 0

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self._array[self.start + index])

    def fingerprint(self, index: int) -> str:
        return hash_bytes(self._array[self.start + index].tobytes())

    @cached_property
    def _array(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "start": self.start}  # a pickled memory map is a copy of the whole array
