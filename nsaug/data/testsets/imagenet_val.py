"""Sets that go by the names of ImageNet's validation images: other labels for them, or other images of theirs."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from nsaug.data.dataset import ImageSet, Label
from nsaug.data.sources.folder import FileLoader, find_images, folder_names, labelled_files, relative_ids
from nsaug.data.sources.imagenet import wnids
from nsaug.data.testsets.imagenet_variants import TestDataset
from nsaug.utils.errors import UserError
from nsaug.utils.types import validate_args

NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
"""Of a validation image, by its number, counted from 1."""


class ImageNetReaL(TestDataset):
    """ImageNet's validation images with reassessed labels, several for some (Beyer et al., arXiv 2006.07159).

    The labels come with timm and go by an image's name; images without any are left out, as in the paper.

    Args:
        root: ImageNet's folder, which holds val/.
        kwargs: as for `TestDataset`.
    """

    title = "ReaL"
    homepage = "https://github.com/google-research/reassessed-imagenet, for the images of https://image-net.org"
    condition = "relabelled"
    images_expected = 46_837

    def find(self) -> ImageSet:
        folder = self.root / "val" if (self.root / "val").is_dir() else self.root
        labels = json.loads((files("timm.data") / "_info" / "imagenet_real_labels.json").read_text())
        numbered = {path: match for path in find_images(folder) if (match := NAME.search(Path(path).name))}
        if not numbered:
            raise self.missing(
                f"its labels go by names such as ILSVRC2012_val_00000001.JPEG, and {folder} holds no such image"
            )
        known = {path: tuple(labels[int(match[1]) - 1]) for path, match in numbered.items()}
        known = {path: label for path, label in known.items() if label}
        return ImageSet(relative_ids(known, self.root), list(known.values()), FileLoader(list(known)))


class DAmageNet(TestDataset):
    """Adversarial examples that fool most models, 224 px, in one folder (Chen et al., IEEE TPAMI 2020).

    Args:
        labels: where the labels are that its file names stand for: ImageNet's folder, which holds val/WNID/, or a text
            file with a name and a class index on each line.
        kwargs: as for `TestDataset`.
    """

    title = "DAmageNet"
    homepage = "https://github.com/Sizhe-Chen/DAmageNet"
    stored_size = 224
    images_expected = 50_000

    @validate_args
    def __init__(self, *, labels: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = Path(labels).expanduser()
        self._unlabelled = 0

    @property
    def notes(self) -> list[str]:
        count = self._unlabelled
        return super().notes + ([f"{count:,} images have no label in {self.labels}"] if count else [])

    def find(self) -> ImageSet:
        paths = find_images(self.root)
        if not paths:
            raise self.missing(f"{self.root} holds no images")
        label_of = self._labels()
        known = [path for path in paths if _number(path) in label_of]
        self._unlabelled = len(paths) - len(known)
        if not known:
            raise self.missing(f"no image in {self.root} has the name of one that {self.labels} has a label for")
        return ImageSet(relative_ids(known, self.root), [label_of[_number(path)] for path in known], FileLoader(known))

    def _labels(self) -> dict[str, Label]:
        """By what stands for an image's number."""
        if self.labels.is_file():
            pairs = [line.split() for line in self.labels.read_text().splitlines() if line.strip()]
            if any(len(pair) != 2 or not pair[1].isdigit() or int(pair[1]) >= len(wnids()) for pair in pairs):
                raise UserError(f"{self.labels}: each line has to be a file name and a class index from 0 to 999")
            return {_number(name): int(label) for name, label in pairs}
        folder = self.labels / "val" if (self.labels / "val").is_dir() else self.labels
        if not folder.is_dir() or not folder_names(folder):
            raise self.missing(f"its labels are those of ImageNet's val/WNID/, and there is none in {self.labels}")
        paths, labels = labelled_files(folder, {name: label for label, name in enumerate(wnids())})
        return {_number(path): label for path, label in zip(paths, labels, strict=True)}


def _number(name: str) -> str:
    """What a file's name and that of the validation image it was made from have in common."""
    stem = Path(name).stem
    match = NAME.search(stem)
    return match[1] if match else stem
