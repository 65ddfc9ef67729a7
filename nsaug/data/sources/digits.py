"""scikit-learn's handwritten digits (UCI): 1,797 images of 8 x 8 pixels, included in the package."""

from typing import Any, Literal

import numpy as np

from nsaug.data.arrays import ArrayLoader
from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet

TEST_FRACTION = 0.2
SPLIT_SEED = 0


class Digits(ImageDataModule):
    """Digits without a download. A fixed fifth of the images is the test split, which the source does not define."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = [str(digit) for digit in range(10)]

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 gray levels, 0 to 16
        order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels))
        num_test = round(TEST_FRACTION * len(pixels))
        ids = [f"digits/{index:04d}" for index in range(len(pixels))]
        images = ImageSet(ids, [int(label) for label in digits.target], ArrayLoader(pixels))
        return images.subset(np.sort(order[:num_test] if split == "test" else order[num_test:]).tolist())
