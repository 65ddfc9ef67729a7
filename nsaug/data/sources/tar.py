"""Class folders in tar files, by timm's reader."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from nsaug.data.dataset import MissingData, UnreadableImage, read_image
from nsaug.utils.errors import first_line

log = logging.getLogger(__name__)


def is_tarred(place: Path) -> bool:
    """Whether a place is a tar file, or a folder of them."""
    return place.suffix == ".tar" if place.is_file() else any(place.glob("*.tar"))


@dataclass(frozen=True)
class TarLoader:
    """The images of one tar file with class folders, of a tar of one tar for each class, or of a folder of such.

    Each image is read by opening the tar anew: processes that load share no file's position.

    Args:
        place: the tar file, or the folder.

    Raises:
        MissingData: it cannot be read, or holds no image in a class folder.
    """

    place: Path
    reader: Any

    @classmethod
    def at(cls, place: Path) -> "TarLoader":
        try:
            # Of what is larger than 10 GB timm keeps an index beside it, where that can be written.
            index = None if os.access(place.parent if place.is_file() else place, os.W_OK) else False
            reader = ReaderImageInTar(str(place), cache_tarfiles=False, cache_tarinfo=index)
        except Exception as error:  # tarfile's own, pickle's of an index, timm's of an empty one
            raise MissingData(f"{place} holds no images in class folders ({first_line(error)})") from error
        return cls(place, reader)

    @property
    def classes(self) -> list[str]:
        """The class of each image: the name of its folder, or of its own tar."""
        names = self.reader.class_idx_to_name
        return [names[target] for target in self.reader.targets.tolist()]

    @property
    def names(self) -> list[str]:
        """A name of each image: class and file name, as in a folder tree; its whole path where that is not enough."""
        short = [
            f"{name}/{os.path.basename(sample[0].path)}"
            for name, sample in zip(self.classes, self.reader.samples, strict=True)
        ]
        twice = {name for name, count in Counter(short).items() if count > 1}
        return [
            f"{name.split('/')[0]}/{sample[0].path}" if name in twice else name
            for name, sample in zip(short, self.reader.samples, strict=True)
        ]

    def __call__(self, index: int) -> Image.Image:
        name = f"{self.place}: {self.reader.samples[index][0].path}"
        try:
            file, _ = self.reader[index]
        except Exception as error:
            raise UnreadableImage(f"{name} cannot be read: {first_line(error)}") from error
        with file:
            return read_image(file, name)

    def fingerprint(self, index: int) -> str:
        member, parent, _ = self.reader.samples[index]
        status = os.stat(self.place / parent if parent else self.place)
        return f"{status.st_size} {status.st_mtime_ns} {member.path} {member.offset_data}"
