"""ImageNet-1k as it is distributed: train/WNID/ and val/WNID/."""

from typing import Any

from nsaug.data.names import wnids
from nsaug.data.sources.folder import Folder
from nsaug.utils.types import Text, validate_args


class ImageNet(Folder):
    """ImageNet-1k, or a part of it: labels are the 1,000 indices of pretrained models whichever folders exist."""

    images_expected = 50_000

    @validate_args
    def __init__(self, *, root: Text, train: Text = "train", test: Text = "val", **kwargs: Any) -> None:
        super().__init__(root=root, train=train, test=test, classes=wnids(), **kwargs)

    def _layout(self) -> str:
        return f"{self.splits['train']}/WNID/*.JPEG and {self.splits['test']}/WNID/*.JPEG"
