"""Names that several data sets share: classes by index, and file names of ImageNet's validation images."""

import re
from functools import cache

from timm.data import ImageNetInfo

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

VAL_IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
"""Name of a validation image; its number starts at 1."""


@cache
def wnids() -> list[str]:
    """WordNet ids of ImageNet's 1,000 classes by index, as in all pretrained models; timm's list."""
    return list(ImageNetInfo("imagenet-1k").label_names())
