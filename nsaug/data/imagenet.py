"""ImageNet-1k as it is distributed: train/<wnid>/ and val/<wnid>/."""

from typing import Any

from timm.data import ImageNetInfo

from nsaug.data.folder import Folder
from nsaug.settings import validated


class ImageNet(Folder):
    """Labels are the 1,000 indices that every pretrained model knows, from timm's list of wnids.

    A tree that lacks classes keeps them: a folder is never renumbered.
    """

    @validated
    def __init__(self, *, root: str, train: str = "train", test: str = "val", **kwargs: Any) -> None:
        super().__init__(root=root, train=train, test=test, classes=ImageNetInfo("imagenet-1k").label_names(), **kwargs)

    def _layout(self) -> str:
        return f"{self.folders['train']}/WNID/*.JPEG and {self.folders['test']}/WNID/*.JPEG"
