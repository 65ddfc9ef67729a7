"""Class folders in tar files."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from nsaug.data.dataset import MissingData, UnreadableImage, read_image
from nsaug.data.files import OUTSIDE, folder_names, is_hidden, is_image_name, skipped_kind, visible_entries
from nsaug.data.fingerprints import UNREADABLE, Stamp, file_version, hash_bytes
from nsaug.utils.errors import UserError, os_reason
from nsaug.utils.files import is_file, open_regular
from nsaug.utils.text import decodable

PADDING = 22 * tarfile.BLOCKSIZE
"""More bytes than there are zeros at the end of a tar: two blocks, and up to 20 of padding."""


def is_tarred(path: Path) -> bool:
    """Whether a path is a tar file, or a folder of tar files.

    Raises:
        UserError: a folder has both tar files and class folders.
    """
    if is_file(path):
        return path.suffix == ".tar"
    tars = _visible_tars(path)
    if tars and (folders := folder_names(path)):
        raise UserError(
            f"{path} has both tar files ({tars[0].name}, ...) and folders ({folders[0]}, ...): move one kind elsewhere"
        )
    return bool(tars)


def _visible_tars(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in visible_entries(folder) if entry.name.endswith(".tar")]


class Member(NamedTuple):
    """An image in a tar file.

    Attributes:
        tar: name of the tar file in a folder of tar files; empty for a single one.
        offset: where its bytes begin in that file.
        size: how many bytes they are.
        name: CLASS/PATH, as in a folder tree.
    """

    tar: str
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class TarLoader:
    """Loads images from a tar file with class folders, a tar of one tar per class, or a folder of such tars.

    Attributes:
        path: the tar file or the folder.
        members: the images.
        skipped: number of files that are not read, by kind.
    """

    path: Path
    members: list[Member]
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def open(cls, path: Path) -> "TarLoader":
        """List the images; of members with the same path the last one counts, as when a tar is unpacked.

        Folders that contain all images are ignored, such as `train/` in train/CLASS/x.jpg.

        Raises:
            MissingData: the path cannot be read, or has no image in a class folder.
        """
        members: dict[tuple[str, ...], Member] = {}
        skipped: Counter[str] = Counter()
        for tar in [path] if is_file(path) else _visible_tars(path):
            name, folder = ("", ()) if tar == path else (tar.name, (tar.stem,))
            try:
                with open_regular(tar) as file:
                    for parts, offset, size in _list_images(file, skipped):
                        members[folder + parts] = Member(name, offset, size, "")
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                raise MissingData(f"{tar} cannot be read as a tar file: {os_reason(error)}") from error
        depth = _common_depth(list(members))
        inside = {parts[depth:]: member for parts, member in members.items() if len(parts) > depth + 1}
        if not inside:
            raise MissingData(f"{path} has no images in class folders")
        skipped[OUTSIDE] += len(members) - len(inside)
        named = [member._replace(name=decodable("/".join(parts))) for parts, member in inside.items()]
        return cls(path, named, +skipped)

    @property
    def classes(self) -> list[str]:
        """The class of each image: the name of its folder, or of its tar."""
        return [member.name.partition("/")[0] for member in self.members]

    @property
    def names(self) -> list[str]:
        """CLASS/PATH of each image, as in a folder tree."""
        return [member.name for member in self.members]

    def __call__(self, index: int) -> Image.Image:
        name = f"{self.path}: {self.members[index].name}"
        try:
            content = self._read(index)
        except OSError as error:
            raise UnreadableImage(f"{name} cannot be read: {os_reason(error)}") from error
        return read_image(io.BytesIO(content), name)

    def _read(self, index: int) -> bytes:
        # Opened for every image: processes and threads must not share a file position.
        member = self.members[index]
        with open_regular(self.path / member.tar) as file:
            file.seek(member.offset)
            return file.read(member.size)

    @property
    def store(self) -> str:
        return os.path.abspath(self.path)

    def stamp(self, index: int) -> Stamp | None:
        member = self.members[index]
        version = file_version(self.path / member.tar)
        return None if version is None else Stamp(f"{member.tar}:{member.name}:{member.offset}", version)

    def fingerprint(self, index: int) -> str:
        try:
            return hash_bytes(self._read(index))
        except OSError:
            return UNREADABLE


def _list_images(
    file: IO[bytes], skipped: Counter[str], start: int = 0, size: int | None = None
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield path, offset and size of the images in a tar file and in the tar files that it contains.

    Args:
        file: the outer tar file.
        skipped: counts the other files by kind.
        start: where the tar begins in the file.
        size: how long it is.

    Raises:
        tarfile.TarError: it is damaged; tarfile itself stops at a damaged header without an error.
    """
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            if size is not None and info.offset_data + info.size > start + size:
                raise tarfile.ReadError(f"a tar within it is truncated at byte {start + size:,}")
            parts = tuple(part for part in info.name.split("/") if part not in ("", ".", ".."))
            if info.isdir() or any(map(is_hidden, parts)):
                continue
            is_plain = info.isreg() and not info.issparse()
            if is_plain and info.name.endswith(".tar") and size is None:
                folder = (*parts[:-1], parts[-1].removesuffix(".tar"))
                for inner, offset, length in _list_images(file, skipped, info.offset_data, info.size):
                    yield folder + inner, offset, length
            elif is_plain and is_image_name(info.name):
                yield parts, info.offset_data, info.size
            else:
                skipped[skipped_kind(info.name) if info.isreg() else "link"] += 1
        end = tar.offset
    file.seek(end)
    rest = file.read(PADDING if size is None else min(PADDING, start + size - end))
    if len(rest) < tarfile.BLOCKSIZE or any(rest):
        raise tarfile.ReadError(f"it is truncated or damaged at byte {end:,}")


def _common_depth(paths: Sequence[tuple[str, ...]]) -> int:
    """Number of leading folders that all paths share, so that a class folder and a file are left."""
    folders = [parts[:-2] for parts in paths if len(parts) > 1]
    same = [len(set(level)) == 1 for level in zip(*folders, strict=False)]
    return same.index(False) if False in same else len(same)
