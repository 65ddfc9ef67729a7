"""Image files in class folders: which ones count, in which order, with which labels."""

import logging
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from nsaug.data.dataset import Label, read_image
from nsaug.data.fingerprints import Stamp, file_version, hash_file
from nsaug.utils.errors import UserError, os_reason
from nsaug.utils.files import is_dir, is_file
from nsaug.utils.text import decodable, preview

log = logging.getLogger(__name__)

MAX_KINDS = 4
"""Number of kinds of files that a warning names."""
OUTSIDE = "outside of class folders"
"""Kind of images that belong to no class."""


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
    """Names of the subfolders, sorted as text, without hidden ones.

    Raises:
        UserError: the folder cannot be listed.
    """
    # Not torchvision's find_classes: it counts hidden folders, such as .ipynb_checkpoints, as classes.
    return [entry.name for entry in visible_entries(folder) if is_dir(entry.path)]  # also a link to a folder


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort class names by value if all are whole numbers, else as text."""
    names = sorted(set(names))
    numeric = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=int) if numeric else names


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def is_image_name(name: str) -> bool:
    return has_file_allowed_extension(name, IMG_EXTENSIONS)


def find_images(folder: Path) -> list[str]:
    """Paths of the image files in a folder at any depth, sorted as text; other files are counted in a warning."""
    (images,), skipped = find_images_in([folder])
    warn_of_skipped(folder, skipped)
    return images


def find_images_in(folders: Sequence[Path]) -> tuple[list[list[str]], Counter[str]]:
    """Find the image files in several folders at any depth.

    Symbolic links are followed, but every real folder counts once: for the folder that contains it rather than for
    one that links to it. Hidden entries do not count; broken links do, to be reported as unreadable.

    Returns:
        Paths of the images in every folder, sorted as text; and the number of other files by kind, see `skipped_kind`.
    """
    # Not torchvision's make_dataset: it counts hidden entries and pipes, and repeats what a link leads back to.
    images: list[list[str]] = [[] for _ in folders]
    skipped: Counter[str] = Counter()
    visited = {str(parent) for folder in folders for parent in Path(folder).resolve().parents}
    tops = sorted(zip(map(os.fspath, folders), images, strict=True), key=lambda top: os.path.islink(top[0]))
    pending = deque(tops)
    while pending:
        folder, own_images = pending.popleft()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        for entry in visible_entries(folder):  # sorted: the same link wins on every machine
            if not entry.is_symlink() and entry.is_dir():
                pending.appendleft((entry.path, own_images))
            elif entry.is_symlink() and is_dir(entry.path):
                pending.append((entry.path, own_images))
            elif is_image_name(entry.name) and _is_regular(entry):
                own_images.append(entry.path)
            else:
                skipped[skipped_kind(entry.name)] += 1
    return [sorted(paths) for paths in images], skipped


def visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder that are not hidden, sorted by name; raises UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {os_reason(error)}") from error


def _is_regular(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return is_file(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def skipped_kind(name: str) -> str:
    """What kind of file is left out: its extension, or `special file` for a pipe with the name of an image."""
    return "special file" if is_image_name(name) else os.path.splitext(name)[1].lower() or "no extension"


def warn_of_skipped(place: str | Path, skipped: Counter[str]) -> None:
    """Name the files that are not read, once for a split."""
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common(MAX_KINDS))
        more = ", ..." if len(skipped) > MAX_KINDS else ""
        known = ", ".join(IMG_EXTENSIONS)
        total = skipped.total()
        log.warning("%s: %s files are not read (%s%s): images are %s files", place, f"{total:,}", kinds, more, known)


def labeled_files(folder: Path, index: Mapping[str, Label | None]) -> tuple[list[str], list[Label]]:
    """Paths of the images in class folders, and their labels; other files are counted in a warning.

    Args:
        folder: contains the class folders.
        index: label by folder name; None for folders whose images do not count.

    Raises:
        UserError: a folder is missing from `index`, or cannot be listed.
    """
    names = folder_names(folder)
    check_class_names(folder, names, index)
    classes = [(name, label) for name in names if (label := index[name]) is not None]
    paths: list[str] = []
    labels: list[Label] = []
    images, skipped = find_images_in([folder / name for name, _ in classes])
    for (_, label), own_images in zip(classes, images, strict=True):
        paths += own_images
        labels += [label] * len(own_images)
    loose = sum(is_image_name(entry.name) and not is_dir(entry.path) for entry in visible_entries(folder))
    warn_of_skipped(folder, skipped + Counter({OUTSIDE: loose}))
    return paths, labels


def check_class_names(path: Path, names: Sequence[str], known: Collection[str]) -> None:
    """Raise UserError if a folder name is not a known class."""
    if unknown := [name for name in names if name not in known]:
        normalized = {unicodedata.normalize("NFC", name) for name in known}
        if unicodedata.normalize("NFC", unknown[0]) in normalized:
            raise UserError(
                f"{path} has a folder {unknown[0]}, which differs from the class of this name in Unicode normalization"
                " (NFC, NFD): rename one of them"
            )
        raise UserError(
            f"{path} has {len(unknown)} folders that are not classes ({preview(unknown)}):"
            f" expected names such as {preview(list(known))}"
        )


def relative_ids(paths: Iterable[str], root: Path) -> list[str]:
    """Paths relative to the root, as image ids."""
    prefix = os.path.join(root, "")
    inside = (path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root) for path in paths)
    return [decodable(Path(path).as_posix()) for path in inside]
