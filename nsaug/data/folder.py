"""Any tree of class folders: root/train/<class>/**/image and root/val/<class>/**/image."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from nsaug.data.images import ImageData, ImageSet
from nsaug.settings import NsaugError, validated

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Files:
    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")

    def stamp(self, index: int) -> str:
        status = os.stat(self.paths[index])
        return f"{status.st_size} {status.st_mtime_ns}"


class Folder(ImageData):
    """Images in class folders; a label is the place of the folder's name in a list of classes.

    Args:
        root: holds the folders of the splits.
        train: name of the folder with training images.
        test: name of the folder with test images.
        classes: the class names in the order of their indices, or a text file with one per line. Where None, the
            sorted names of the training folders (of the test folders where there are none to train on).
        kwargs: as for `ImageData`.
    """

    @validated
    def __init__(
        self,
        *,
        root: str,
        train: str = "train",
        test: str = "val",
        classes: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.folders = {"train": train, "test": test}
        if isinstance(classes, str):
            if not Path(classes).is_file():
                raise NsaugError(f"data.classes={classes} does not exist: name a text file with one class per line")
            classes = Path(classes).read_text().split("\n")
            classes = [line.strip() for line in classes if line.strip()]
        self._given_classes = classes

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        folder = self._folder(split)
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not found:
            raise NsaugError(f"{folder} holds no class folders: data.root has to hold {self._layout()}")
        self.class_names = self._given_classes or self._sorted_classes(found)
        index = {name: label for label, name in enumerate(self.class_names)}
        if unknown := [name for name in found if name not in index]:
            raise NsaugError(
                f"{folder} holds {len(unknown)} folders that are no class, {_some(unknown)}:"
                f" expected names such as {_some(self.class_names)}"
            )
        if missing := [name for name in self.class_names if name not in set(found)]:
            log.warning(
                "%s has no images of %d of the %d classes (%s)",
                folder,
                len(missing),
                len(index),
                _some(missing),
            )
        paths, labels = [], []
        for name in found:
            for path in _images_below(folder / name):
                paths.append(path)
                labels.append(index[name])
        if not paths:
            raise NsaugError(f"{folder} holds class folders without images ({', '.join(IMG_EXTENSIONS)})")
        ids = [Path(path).relative_to(self.root).as_posix() for path in paths]
        return ImageSet(ids, labels, _Files(paths))

    def _sorted_classes(self, found: list[str]) -> list[str]:
        train = self.root / self.folders["train"]
        return sorted(entry.name for entry in os.scandir(train) if entry.is_dir()) if train.is_dir() else found

    def _folder(self, split: Literal["train", "test"]) -> Path:
        if not self.root.is_dir():
            raise NsaugError(
                f"data.root={self.root} does not exist: type data.root=PATH, a folder that holds {self._layout()}"
            )
        folder = self.root / self.folders[split]
        if not folder.is_dir():
            raise NsaugError(
                f"data.root={self.root} has no {self.folders[split]}/ folder: type data.root=PATH, a folder that holds"
                f" {self._layout()}, or data.{split}=NAME where it is called otherwise"
            )
        return folder

    def _layout(self) -> str:
        return f"{self.folders['train']}/CLASS/*.jpg and {self.folders['test']}/CLASS/*.jpg"


def _images_below(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS)
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
