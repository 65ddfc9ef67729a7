"""ImageNet-1k as it is distributed: train/WNID/ and val/WNID/."""

import re
from functools import cache
from typing import Any

from timm.data import ImageNetInfo

from nsaug.data.sources.folder import Folder
from nsaug.utils.types import validate_args

VAL_IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
"""Name of a validation image; its number starts at 1."""


@cache
def wnids() -> list[str]:
    """WordNet ids of the 1,000 classes by index, as in all pretrained models; timm's list."""
    return list(ImageNetInfo("imagenet-1k").label_names())


class ImageNet(Folder):
    """ImageNet-1k, or a part of it: labels are the 1,000 indices of pretrained models whichever folders exist."""

    images_expected = 50_000

    @validate_args
    def __init__(self, *, root: str, train: str = "train", test: str = "val", **kwargs: Any) -> None:
        super().__init__(root=root, train=train, test=test, classes=wnids(), **kwargs)

    def _layout(self) -> str:
        return f"{self.splits['train']}/WNID/*.JPEG and {self.splits['test']}/WNID/*.JPEG"
