"""Any tree of class folders: root/train/<class>/**/image and root/val/<class>/**/image."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from nsaug.data.images import ImageData
from nsaug.data.sets import ImageSet, Label, MissingData, UnreadableImage, some
from nsaug.settings import NsaugError, first_line, validated

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Loads image files by position."""

    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def stamp(self, index: int) -> str:
        return file_stamp(self.paths[index])


def read_image(path: str) -> Image.Image:
    """An image file, RGB.

    Raises:
        UnreadableImage: it cannot be opened, or is cut off.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} cannot be read: {first_line(error)}") from error


def file_stamp(path: str) -> str:
    """Text that changes when the file does."""
    status = os.stat(path)
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
        found = folder_names(folder)
        if not found:
            raise NsaugError(f"{folder} holds no class folders: data.root has to hold {self._layout()}")
        self.class_names = self._given_classes or self._sorted_classes(found)
        index = {name: label for label, name in enumerate(self.class_names)}
        paths, labels = labelled_files(folder, index)
        if not paths:
            raise NsaugError(f"{folder} holds class folders without images ({', '.join(IMG_EXTENSIONS)})")
        seen = set(labels)
        missing = [name for name, label in index.items() if label not in seen]
        if missing and split == "train":  # of test images `setup` says so
            log.warning(
                "%s has no images of %d of the %d classes (%s)", folder, len(missing), len(index), some(missing)
            )
        return ImageSet(relative(paths, self.root), labels, Files(paths))

    def _sorted_classes(self, found: list[str]) -> list[str]:
        train = self.root / self.folders["train"]
        return folder_names(train) if train.is_dir() else found

    def _folder(self, split: Literal["train", "test"]) -> Path:
        if not self.root.is_dir():
            raise MissingData(
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


def labelled_files(folder: Path, index: Mapping[str, Label | None]) -> tuple[list[str], list[Label]]:
    """The image files below each class folder, and the label of each.

    Args:
        index: the label of every folder that may be there; None where its images do not count.

    Raises:
        NsaugError: a folder is no class.
    """
    found = folder_names(folder)
    if unknown := [name for name in found if name not in index]:
        raise NsaugError(
            f"{folder} holds {len(unknown)} folders that are no class, {some(unknown)}:"
            f" expected names such as {some(list(index))}"
        )
    paths: list[str] = []
    labels: list[Label] = []
    for name in found:
        label = index[name]
        if label is not None:
            own = images_below(folder / name)
            paths += own
            labels += [label] * len(own)
    return paths, labels


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_below(folder: Path) -> list[str]:
    """Paths of the image files at any depth, sorted."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )


def relative(paths: Iterable[str], root: Path) -> list[str]:
    """Paths as ids: from the root on."""
    return [Path(path).relative_to(root).as_posix() for path in paths]
