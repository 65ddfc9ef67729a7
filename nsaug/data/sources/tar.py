"""Class folders in tar files, through timm's reader."""

import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from nsaug.data.dataset import MissingData, UnreadableImage, read_image
from nsaug.data.files import is_hidden
from nsaug.data.fingerprints import UNREADABLE, Stamp, file_version, hash_bytes
from nsaug.utils.errors import first_line


def is_tarred(path: Path) -> bool:
    """Whether a path is a tar file, or a folder of tar files."""
    if path.is_file():
        return path.suffix == ".tar"
    return any(not is_hidden(tar.name) for tar in path.glob("*.tar"))


@dataclass(frozen=True)
class TarLoader:
    """Loads images from a tar file with class folders, a tar of one tar per class, or a folder of such tars.

    The tar is opened for every image, because processes and threads must not share a file position.

    Raises:
        MissingData: the path cannot be read, or has no image in a class folder.
    """

    path: Path
    reader: Any

    @classmethod
    def open(cls, path: Path) -> "TarLoader":
        try:
            # No index beside large tars: it is a pickle, and timm would use it after the tar has changed.
            reader = ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=False)
            visible = [not _has_hidden_part(sample[0].path) for sample in reader.samples]
            reader.samples, reader.targets = reader.samples[visible], reader.targets[visible]
            assert len(reader.samples), "all of its images are hidden"
        except Exception as error:  # of tarfile or timm
            raise MissingData(f"{path} has no images in class folders ({first_line(error)})") from error
        return cls(path, reader)

    @property
    def classes(self) -> list[str]:
        """The class of each image: the name of its folder, or of its tar."""
        names = self.reader.class_idx_to_name
        return [names[target] for target in self.reader.targets.tolist()]

    @property
    def names(self) -> list[str]:
        """CLASS/FILE for each image, as in a folder tree; CLASS/PATH where that is not unique."""
        members = [sample[0].path for sample in self.reader.samples]
        short = [f"{name}/{os.path.basename(path)}" for name, path in zip(self.classes, members, strict=True)]
        counts = Counter(short)
        return [
            name if counts[name] == 1 else f"{name.split('/')[0]}/{path}"
            for name, path in zip(short, members, strict=True)
        ]

    def __call__(self, index: int) -> Image.Image:
        name = f"{self.path}: {self.reader.samples[index][0].path}"
        try:
            file, _ = self.reader[index]
        except Exception as error:
            raise UnreadableImage(f"{name} cannot be read: {first_line(error)}") from error
        with file:
            return read_image(file, name)

    @property
    def store(self) -> str:
        return os.path.abspath(self.path)

    def stamp(self, index: int) -> Stamp | None:
        member, parent, child = self.reader.samples[index]
        version = file_version(self.path / parent if parent else self.path)
        name = f"{parent or ''}:{child.path if child else ''}:{member.path}:{member.offset_data}"
        return None if version is None else Stamp(name, version)

    def fingerprint(self, index: int) -> str:
        try:
            file, _ = self.reader[index]
            with file:
                return hash_bytes(file.read())
        except (OSError, tarfile.TarError):
            return UNREADABLE


def _has_hidden_part(path: str) -> bool:
    return any(is_hidden(part) for part in path.split("/") if part not in (".", ".."))
