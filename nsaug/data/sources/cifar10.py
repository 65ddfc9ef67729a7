"""CIFAR-10, from class folders or from torchvision's files."""

from typing import Any, Literal

import torchvision

from nsaug.data.arrays import ArrayLoader
from nsaug.data.dataset import ImageSet
from nsaug.data.names import CIFAR10_CLASSES
from nsaug.data.sources.folder import Folder
from nsaug.utils.errors import UserError
from nsaug.utils.files import is_dir
from nsaug.utils.types import Text, validate_args


class CIFAR10(Folder):
    """CIFAR-10 in root/train/CLASS/ and root/val/CLASS/, or else in torchvision's files in root.

    Args:
        root: where the images are, or are downloaded to.
        download: let torchvision download missing files (170 MB).
        kwargs: see `Folder`.
    """

    @validate_args
    def __init__(self, *, root: Text, download: bool = False, **kwargs: Any) -> None:
        super().__init__(root=root, classes=CIFAR10_CLASSES, **kwargs)
        self.download = download

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        if is_dir(self.root / self.splits[split]):
            return super().read(split)
        try:
            data = torchvision.datasets.CIFAR10(str(self.root), train=split == "train", download=self.download)
        except (RuntimeError, OSError) as error:
            hint = f"the download failed ({error})" if self.download else "data.download=true downloads it"
            raise UserError(
                f"data.root={self.root} has neither {self._layout()} nor torchvision's CIFAR-10: {hint},"
                " data.root=PATH names your own copy"
            ) from error
        self.class_names = CIFAR10_CLASSES
        ids = [f"{split}/{index:05d}" for index in range(len(data))]
        return ImageSet(ids, [int(label) for label in data.targets], ArrayLoader(data.data))
