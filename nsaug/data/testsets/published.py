"""Base classes of published test sets; the classes are ImageNet's 1,000 unless a subclass says otherwise."""

import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nsaug.data.dataset import ImageSet, Label, MissingData
from nsaug.data.files import FileLoader, folder_names, labeled_files, relative_ids
from nsaug.data.names import wnids
from nsaug.data.testsets.base import TestDataset
from nsaug.utils.files import is_dir, is_file
from nsaug.utils.types import Text, validate_args


class PublishedDataset(TestDataset):
    """A test set that users download. A subclass implements `list_images`.

    Args:
        root: its folder.
        kwargs: see `TestDataset`.

    Attributes:
        folder: usual name of the folder, below one with all data sets.
        homepage: where it is published.
    """

    folder: ClassVar[str]
    homepage: ClassVar[str]

    @validate_args
    def __init__(self, *, root: Text, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.class_names = wnids()

    def read(self) -> ImageSet:
        if not is_dir(self.root):
            raise self.missing(f"there is no folder {self.root}")
        return self.list_images()

    def list_images(self) -> ImageSet:
        """List the images in `root`, which exists; for errors see `read`."""
        raise NotImplementedError

    def missing(self, reason: str) -> MissingData:
        """An error that says why the set cannot be read, and where it is published."""
        return MissingData(f"{self.title}: {reason}; it is published at {self.homepage}")

    def load_array(self, path: Path, **kwargs: Any) -> np.ndarray:
        """Load an array of the set; `kwargs` go to `numpy.load`.

        Raises:
            MissingData: the file is missing or damaged.
        """
        if not is_file(path):
            raise self.missing(f"there is no file {path}")
        try:
            array = np.load(path, **kwargs)
        except (OSError, ValueError, EOFError, OverflowError, MemoryError, zipfile.BadZipFile) as error:
            raise self.missing(f"{path} is truncated or damaged ({path.stat().st_size:,} bytes)") from error
        if not isinstance(array, np.ndarray):
            raise self.missing(f"{path} is an archive, expected one array")
        return array


class ClassFolders(PublishedDataset):
    """Images in class folders.

    Attributes:
        subdirs: where the class folders may be, relative to `root`; the first one that has any is used.
    """

    subdirs: tuple[str, ...] = ("",)

    def label_index(self) -> dict[str, Label | None]:
        """Label by folder name; None for folders whose images do not count."""
        return {name: label for label, name in enumerate(self.class_names)}

    def list_images(self) -> ImageSet:
        index = self.label_index()
        for subdir in self.subdirs:
            folder = self.root / subdir
            if is_dir(folder) and not index.keys().isdisjoint(folder_names(folder)):
                paths, labels = labeled_files(folder, index)
                if paths:
                    return ImageSet(relative_ids(paths, self.root), labels, self.make_loader(paths))
        tried = " and ".join(str(self.root / subdir) for subdir in self.subdirs)
        raise self.missing(f"no images in folders such as {next(iter(index))} in {tried}")

    def make_loader(self, paths: list[str]) -> FileLoader:
        return FileLoader(paths)
