"""scikit-learn's handwritten digits (UCI): 1,797 images of 8 x 8 pixels, included in the package."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet

TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class _ArrayLoader:
    images: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def fingerprint(self, index: int) -> str:
        return self.images[index].tobytes().hex()


class Digits(ImageDataModule):
    """Digits without a download. A fixed fifth of the images is the test split, which the source does not define."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = [str(digit) for digit in range(10)]

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 gray levels, 0 to 16
        order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels))
        num_test = round(TEST_FRACTION * len(pixels))
        ids = [f"digits/{index:04d}" for index in range(len(pixels))]
        images = ImageSet(ids, [int(label) for label in digits.target], _ArrayLoader(pixels))
        return images.subset(np.sort(order[:num_test] if split == "test" else order[num_test:]).tolist())
