"""Any tree of class folders, root/train/<class>/**/image and root/val/<class>/**/image, also in tar files."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet, Label, MissingData, preview, read_image
from nsaug.data.sources.tar import TarLoader, is_tarred
from nsaug.utils.errors import UserError
from nsaug.utils.types import validate_args

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileLoader:
    """Loads image files by position."""

    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        return read_image(self.paths[index], self.paths[index])

    def fingerprint(self, index: int) -> str:
        return file_fingerprint(self.paths[index])


def file_fingerprint(path: str) -> str:
    """Text that changes when the file does."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


class Folder(ImageDataModule):
    """Images in class folders; a label is the place of the folder's name in a list of classes.

    Args:
        root: holds the splits, each a folder of class folders, a tar file of such (`train.tar`), or a folder or tar of
            one tar for each class.
        train: name of the split with training images.
        test: name of the split with test images.
        classes: the class names in the order of their indices, or a text file with one per line. Where None, the
            sorted names of the training folders (of the test folders where there are none to train on).
        kwargs: as for `ImageDataModule`.
    """

    @validate_args
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
        self.splits = {"train": train, "test": test}
        if isinstance(classes, str):
            if not Path(classes).is_file():
                raise UserError(f"data.classes={classes} does not exist: name a text file with one class per line")
            classes = Path(classes).read_text().split("\n")
            classes = [line.strip() for line in classes if line.strip()]
        self._given_classes = classes

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        place = self._place(split)
        if is_tarred(place):
            return self._read_tar(TarLoader.at(place), split)
        found = folder_names(place)
        if not found:
            raise UserError(f"{place} holds no class folders: data.root has to hold {self._layout()}")
        self.class_names = self._given_classes or self._training_classes() or found
        index = {name: label for label, name in enumerate(self.class_names)}
        paths, labels = labelled_files(place, index)
        if not paths:
            raise UserError(f"{place} holds class folders without images ({', '.join(IMG_EXTENSIONS)})")
        self._tell_missing(place, labels, split)
        return ImageSet(relative_ids(paths, self.root), labels, FileLoader(paths))

    def _read_tar(self, images: TarLoader, split: Literal["train", "test"]) -> ImageSet:
        classes, names = images.classes, images.names
        self.class_names = self._given_classes or self._training_classes() or sorted(set(classes))
        index = {name: label for label, name in enumerate(self.class_names)}
        check_class_names(images.place, sorted(set(classes)), index)
        labels: list[Label] = [index[name] for name in classes]
        self._tell_missing(images.place, labels, split)
        # Named and ordered as in a folder tree: the same images are then drawn, held out and attacked alike.
        whole = ImageSet([f"{self.splits[split]}/{name}" for name in names], labels, images)
        return whole.subset(sorted(range(len(names)), key=lambda at: names[at]))

    def _tell_missing(self, place: Path, labels: Iterable[Label], split: str) -> None:
        seen = set(labels)
        missing = [name for label, name in enumerate(self.class_names) if label not in seen]
        if missing and split == "train":  # of test images `setup` says so
            count = len(self.class_names)
            log.warning("%s has no images of %d of the %d classes (%s)", place, len(missing), count, preview(missing))

    def _training_classes(self) -> list[str]:
        train = self._found("train")
        if train is None:
            return []
        return sorted(set(TarLoader.at(train).classes)) if is_tarred(train) else folder_names(train)

    def _found(self, split: Literal["train", "test"]) -> Path | None:
        name = self.splits[split]
        folder, tar = self.root / name, self.root / f"{name.removesuffix('.tar')}.tar"
        return folder if folder.is_dir() else tar if tar.is_file() else None

    def _place(self, split: Literal["train", "test"]) -> Path:
        if not self.root.is_dir():
            raise MissingData(
                f"data.root={self.root} does not exist: type data.root=PATH, a folder that holds {self._layout()}"
            )
        place = self._found(split)
        if place is None:
            raise UserError(
                f"data.root={self.root} has no {self.splits[split]}/ folder: type data.root=PATH, a folder that holds"
                f" {self._layout()}, or data.{split}=NAME where it is called otherwise"
            )
        return place

    def _layout(self) -> str:
        return f"{self.splits['train']}/CLASS/*.jpg and {self.splits['test']}/CLASS/*.jpg"


def labelled_files(folder: Path, index: Mapping[str, Label | None]) -> tuple[list[str], list[Label]]:
    """The image files below each class folder, and the label of each.

    Args:
        index: the label of every folder that may be there; None where its images do not count.

    Raises:
        UserError: a folder is no class.
    """
    found = folder_names(folder)
    check_class_names(folder, found, index)
    paths: list[str] = []
    labels: list[Label] = []
    for name in found:
        label = index[name]
        if label is not None:
            own = find_images(folder / name)
            paths += own
            labels += [label] * len(own)
    return paths, labels


def check_class_names(place: Path, found: list[str], index: Mapping[str, Any]) -> None:
    """Raises UserError where a folder is no class."""
    if unknown := [name for name in found if name not in index]:
        raise UserError(
            f"{place} holds {len(unknown)} folders that are no class, {preview(unknown)}:"
            f" expected names such as {preview(list(index))}"
        )


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def find_images(folder: Path) -> list[str]:
    """Paths of the image files at any depth, sorted."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )


def relative_ids(paths: Iterable[str], root: Path) -> list[str]:
    """Paths as ids: from the root on."""
    return [Path(path).relative_to(root).as_posix() for path in paths]
