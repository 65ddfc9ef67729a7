"""What the tests of the test sets share."""

import numpy as np
from PIL import Image

from nsaug.data.names import wnids
from tests.conftest import place
from tests.data.helpers import config

CONFIG = config(224, crop_pct=0.875)


def check_labels(data, sample):
    """Compare every image with the sample's image of the class that it is labeled with."""
    assert len(data.images)
    for index in range(len(data.images)):
        pixels, label, name = data.images[index]
        with Image.open(data.root / name) as stored, Image.open(sample[label]) as original:
            np.testing.assert_array_equal(np.array(stored.convert("RGB")), np.array(original.convert("RGB")))
        assert pixels.shape == (3, 224, 224)
        assert 0 <= pixels.min() < pixels.max() <= 1


def save_validation_images(sample, root, numbers):
    """Save root/val/WNID/ILSVRC2012_val_N.JPEG, given the number N by class index."""
    for label, number in numbers.items():
        place(sample[label], root / "val" / wnids()[label] / f"ILSVRC2012_val_{number:08d}.JPEG")
