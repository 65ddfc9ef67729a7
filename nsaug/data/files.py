"""Image files in class folders: which ones count, in which order, with which labels."""

import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from nsaug.data.dataset import Label, preview, read_image
from nsaug.data.fingerprints import Stamp, file_version, hash_file
from nsaug.utils.errors import UserError


@dataclass(frozen=True)
class FileLoader:
    """Loads image files by position."""

    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        return read_image(self.paths[index], self.paths[index])

    @cached_property
    def store(self) -> str:
        """The folder that contains all files."""
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in self.paths])

    def stamp(self, index: int) -> Stamp | None:
        version = file_version(self.paths[index])
        return None if version is None else Stamp(os.path.abspath(self.paths[index])[len(self.store) :], version)

    def fingerprint(self, index: int) -> str:
        return hash_file(self.paths[index])


def folder_names(folder: Path) -> list[str]:
    """Names of the subfolders, sorted as text, without hidden ones."""
    # Not torchvision's find_classes: it counts hidden folders, such as .ipynb_checkpoints, as classes.
    return sorted(name for name in os.listdir(folder) if not is_hidden(name) and (folder / name).is_dir())


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort class names by value if all are whole numbers, else as text."""
    names = sorted(set(names))
    numeric = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=int) if numeric else names


def find_images(folder: Path) -> list[str]:
    """Paths of the image files in a folder at any depth, sorted as text."""
    return find_images_in([folder])[0]


def find_images_in(folders: Sequence[Path]) -> list[list[str]]:
    """Paths of the image files in several folders.

    Symbolic links are followed, but every real folder counts once: for the folder that contains it rather than for
    one that links to it. Hidden entries and special files, such as pipes, do not count; broken links do, to be
    reported as unreadable.
    """
    # Not torchvision's make_dataset: it counts hidden entries and pipes, and repeats what a link leads back to.
    images: list[list[str]] = [[] for _ in folders]
    visited = {str(parent) for folder in folders for parent in Path(folder).resolve().parents}
    tops = sorted(zip(map(os.fspath, folders), images, strict=True), key=lambda top: os.path.islink(top[0]))
    pending = deque(tops)
    while pending:
        folder, own_images = pending.popleft()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):  # the same link wins on every machine
                if is_hidden(entry.name):
                    continue
                if not entry.is_symlink() and entry.is_dir():
                    pending.appendleft((entry.path, own_images))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    pending.append((entry.path, own_images))
                elif has_file_allowed_extension(entry.name, IMG_EXTENSIONS) and _is_regular(entry):
                    own_images.append(entry.path)
    return [sorted(paths) for paths in images]


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_regular(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def labeled_files(folder: Path, index: Mapping[str, Label | None]) -> tuple[list[str], list[Label]]:
    """Paths of the images in class folders, and their labels.

    Args:
        index: label by folder name; None for folders whose images do not count.

    Raises:
        UserError: a folder is missing from `index`.
    """
    names = folder_names(folder)
    check_class_names(folder, names, index)
    classes = [(name, label) for name in names if (label := index[name]) is not None]
    paths: list[str] = []
    labels: list[Label] = []
    images = find_images_in([folder / name for name, _ in classes])
    for (_, label), own_images in zip(classes, images, strict=True):
        paths += own_images
        labels += [label] * len(own_images)
    return paths, labels


def check_class_names(path: Path, names: Sequence[str], known: Collection[str]) -> None:
    """Raise UserError if a folder name is not a known class."""
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"{path} has {len(unknown)} folders that are not classes ({preview(unknown)}):"
            f" expected names such as {preview(list(known))}"
        )


def relative_ids(paths: Iterable[str], root: Path) -> list[str]:
    """Paths relative to the root, as image ids."""
    return [Path(path).relative_to(root).as_posix() for path in paths]
