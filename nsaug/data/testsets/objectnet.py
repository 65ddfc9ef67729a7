"""ObjectNet: objects in unusual views and places, of which 113 classes are ImageNet's too."""

import json
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data import ImageNetInfo

from nsaug.data.dataset import ImageSet, Label, label_set
from nsaug.data.sources.folder import FileLoader
from nsaug.data.testsets.imagenet_variants import ClassFolders
from nsaug.utils.errors import UserError

BORDER = 2
"""Pixels cut off each side: the images have a red border of one, blurred by JPEG where they were converted."""


@dataclass(frozen=True)
class _WithoutBorder(FileLoader):
    def __call__(self, index: int) -> Image.Image:
        image = super().__call__(index)
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


class ObjectNet(ClassFolders):
    """root/images/CLASS/ and root/mappings/ (Barbu et al., NeurIPS 2019).

    A class can be several of ImageNet's: an answer is right where it is one of them. Answers are taken among the
    ImageNet classes that ObjectNet shares; images of its other classes are left out.
    """

    title = "ObjectNet"
    homepage = "https://objectnet.dev"
    below = ("images", "")
    images_expected = 18_574

    def find(self) -> ImageSet:
        images = super().find()
        self.class_subset = sorted(
            {each for label in self._index.values() if label is not None for each in label_set(label)}
        )
        return images

    def files(self, paths: list[str]) -> FileLoader:
        return _WithoutBorder(paths)

    def index(self) -> dict[str, Label | None]:
        """By the set's own mappings: folder to ObjectNet's name, to ImageNet's descriptions, to their indices."""
        to_name = self._mapping("folder_to_objectnet_label.json")
        to_descriptions = self._mapping("objectnet_to_imagenet_1k.json")
        to_line = self._mapping("pytorch_to_imagenet_2012_id.json")
        lines = [line.strip() for line in self._text("imagenet_to_label_2012_v2").splitlines()]
        place = {lines[int(line)]: int(index) for index, line in to_line.items() if int(line) < len(lines)}
        self._index: dict[str, Label | None] = {}
        for folder, name in to_name.items():
            descriptions = [each.strip() for each in to_descriptions.get(name, "").split(";") if each.strip()]
            if unknown := [each for each in descriptions if each not in place]:
                raise UserError(f"{self.root}/mappings: {name} is {unknown[0]}, which imagenet_to_label_2012_v2 lacks")
            self._index[folder] = tuple(sorted(place[each] for each in descriptions)) or None
        self._check({each: place[each] for names in to_descriptions.values() for each in names.split("; ")})
        return self._index

    def _check(self, place: dict[str, int]) -> None:
        """Holds the mappings against timm's list of classes: a shift by one line would go unnoticed in the numbers."""
        info = ImageNetInfo("imagenet-1k")
        for description, index in place.items():
            known = info.index_to_description(index)
            if description.split(",")[0].strip().lower() not in known.lower():
                raise UserError(
                    f"{self.root}/mappings gives {description!r} class {index}, which is {known!r}:"
                    " unpack the published archive again"
                )

    def _mapping(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._text(name))
        except ValueError as error:
            raise UserError(
                f"{self.root / 'mappings' / name} is no JSON: unpack the published archive again"
            ) from error
        return dict(found)

    def _text(self, name: str) -> str:
        path = self.root / "mappings" / name
        if not path.is_file():
            raise self.missing(f"there is no file {path}")
        return path.read_text()
