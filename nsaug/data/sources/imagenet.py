"""ImageNet-1k as it is distributed: train/<wnid>/ and val/<wnid>/."""

from functools import cache
from typing import Any

from timm.data import ImageNetInfo

from nsaug.data.sources.folder import Folder
from nsaug.utils.types import validate_args


@cache
def wnids() -> list[str]:
    """The WordNet ids of the 1,000 classes by index, as every pretrained model knows them; timm's list."""
    return list(ImageNetInfo("imagenet-1k").label_names())


class ImageNet(Folder):
    """Labels are the 1,000 indices that every pretrained model knows, from timm's list of wnids.

    A tree that lacks classes keeps them: a folder is never renumbered.
    """

    images_expected = 50_000

    @validate_args
    def __init__(self, *, root: str, train: str = "train", test: str = "val", **kwargs: Any) -> None:
        super().__init__(root=root, train=train, test=test, classes=wnids(), **kwargs)

    def _layout(self) -> str:
        return f"{self.splits['train']}/WNID/*.JPEG and {self.splits['test']}/WNID/*.JPEG"
