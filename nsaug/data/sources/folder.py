"""Any data set in class folders or in tar files of them."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from torchvision.datasets.folder import IMG_EXTENSIONS

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet, Label, MissingData
from nsaug.data.files import (
    FileLoader,
    check_class_names,
    folder_names,
    labeled_files,
    relative_ids,
    sort_classes,
    warn_of_skipped,
)
from nsaug.data.sources.tar import TarLoader, is_tarred
from nsaug.utils.errors import UserError
from nsaug.utils.files import is_dir, is_file, read_lines
from nsaug.utils.text import preview
from nsaug.utils.types import Text, check_unique, validate_args

log = logging.getLogger(__name__)

Names = Annotated[list[Text], Field(min_length=1), AfterValidator(check_unique)]


class Folder(ImageDataModule):
    """Images in root/train/CLASS/ and root/val/CLASS/, at any depth, or in tar files.

    Args:
        root: contains the splits. Each is a folder of class folders, a tar file of class folders (train.tar), or a
            folder or tar file of one tar per class.
        train: name of the split with training images.
        test: name of the split with test images.
        classes: class names in the order of their indices, or a text file with one per line. None for the sorted
            names of the training folders (of the test folders if there are no training images).
        kwargs: see `ImageDataModule`.
    """

    @validate_args
    def __init__(
        self,
        *,
        root: Text,
        train: Text = "train",
        test: Text = "val",
        classes: Names | Text | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.splits = {"train": train, "test": test}
        self._given_classes = _read_classes(classes) if isinstance(classes, str) else classes

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        path = self._split_path(split)
        if is_tarred(path):
            return self._read_tar(TarLoader.open(path), split)
        names = folder_names(path)
        if not names:
            raise UserError(f"{path} has no class folders: data.root has to contain {self._layout()}")
        self.class_names = self._given_classes or self._training_classes() or sort_classes(names)
        paths, labels = labeled_files(path, {name: label for label, name in enumerate(self.class_names)})
        if not paths:
            raise UserError(f"{path} has class folders without images ({', '.join(IMG_EXTENSIONS)})")
        self._warn_about_empty_classes(path, labels, split)
        return ImageSet(relative_ids(paths, self.root), labels, FileLoader(paths))

    def _read_tar(self, images: TarLoader, split: Literal["train", "test"]) -> ImageSet:
        warn_of_skipped(images.path, images.skipped)
        classes, names = images.classes, images.names
        self.class_names = self._given_classes or self._training_classes() or sort_classes(classes)
        index = {name: label for label, name in enumerate(self.class_names)}
        check_class_names(images.path, sorted(set(classes)), index)
        labels: list[Label] = [index[name] for name in classes]
        self._warn_about_empty_classes(images.path, labels, split)
        # Ids and order of a folder tree, so that both layouts give the same splits, order and augmentation.
        ids = [f"{self.splits[split]}/{name}" for name in names]
        return ImageSet(ids, labels, images).subset(sorted(range(len(names)), key=lambda position: names[position]))

    def _warn_about_empty_classes(self, path: Path, labels: Iterable[Label], split: str) -> None:
        present = set(labels)
        empty = [name for label, name in enumerate(self.class_names) if label not in present]
        if empty and split == "train":  # for test images, TestDataset warns
            total = len(self.class_names)
            log.warning("%s has no images of %d of the %d classes (%s)", path, len(empty), total, preview(empty))

    def _training_classes(self) -> list[str]:
        train = self._find_split("train")
        if train is None:
            return []
        return sort_classes(TarLoader.open(train).classes if is_tarred(train) else folder_names(train))

    def _find_split(self, split: Literal["train", "test"]) -> Path | None:
        name = self.splits[split]
        folder, tar = self.root / name, self.root / f"{name.removesuffix('.tar')}.tar"
        return folder if is_dir(folder) else tar if is_file(tar) else None

    def _split_path(self, split: Literal["train", "test"]) -> Path:
        if not is_dir(self.root):
            raise MissingData(
                f"data.root={self.root} does not exist: type data.root=PATH, a folder that contains {self._layout()}"
            )
        path = self._find_split(split)
        if path is None:
            raise UserError(
                f"data.root={self.root} has no {self.splits[split]}/ folder: type data.root=PATH, a folder that"
                f" contains {self._layout()}, or data.{split}=NAME if the folder has another name"
            )
        return path

    def _layout(self) -> str:
        return f"{self.splits['train']}/CLASS/*.jpg and {self.splits['test']}/CLASS/*.jpg"


def _read_classes(file: str) -> list[str]:
    classes = read_lines(file, "data.classes", "one class per line")
    try:
        check_unique(classes)
    except ValueError as error:
        raise UserError(f"data.classes={file}: {error}") from error
    return classes
