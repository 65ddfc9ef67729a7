"""ObjectNet: objects from unusual viewpoints and in unusual places; ImageNet shares 113 of its classes."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import TypeAdapter, ValidationError
from timm.data import ImageNetInfo

from nsaug.data.dataset import Label, UnreadableImage, label_set
from nsaug.data.files import FileLoader
from nsaug.data.testsets.published import ClassFolders
from nsaug.utils.errors import UserError
from nsaug.utils.files import is_file
from nsaug.utils.types import first_problem

BORDER = 2
"""Pixels cropped on every side: the red border is one pixel wide, and JPEG copies blur it."""


@dataclass(frozen=True)
class _BorderlessLoader(FileLoader):
    def __call__(self, index: int) -> Image.Image:
        image = super().__call__(index)
        if min(image.size) <= 2 * BORDER:
            raise UnreadableImage(f"{self.paths[index]} has {image.width} x {image.height} px, all of them border")
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


class ObjectNet(ClassFolders):
    """root/images/CLASS/ and root/mappings/ (Barbu et al., NeurIPS 2019).

    A class can correspond to several of ImageNet's, all of them correct. Predictions are made among the ImageNet
    classes that ObjectNet shares; images of its other classes are left out.
    """

    title = "ObjectNet"
    folder = "objectnet-1.0"
    homepage = "https://objectnet.dev"
    subdirs = ("images", "")
    images_expected = 18_574

    def make_loader(self, paths: list[str]) -> FileLoader:
        return _BorderlessLoader(paths)

    def label_index(self) -> dict[str, Label | None]:
        """Map folders to ObjectNet's names, these to ImageNet's descriptions, and these to class indices."""
        names = self._read_mapping("folder_to_objectnet_label.json", str)
        descriptions = self._read_mapping("objectnet_to_imagenet_1k.json", str)
        lines = [line.strip() for line in self._read("imagenet_to_label_2012_v2").splitlines()]
        line_numbers = self._read_mapping("pytorch_to_imagenet_2012_id.json", int)
        known = {label: line for label, line in line_numbers.items() if label.isdecimal() and 0 <= line < len(lines)}
        class_indices = {lines[line]: int(label) for label, line in known.items()}
        index: dict[str, Label | None] = {}
        for folder, name in names.items():
            shared = [part.strip() for part in descriptions.get(name, "").split(";") if part.strip()]
            if unknown := [description for description in shared if description not in class_indices]:
                raise UserError(f"{self.root}/mappings: {name} is {unknown[0]}, which imagenet_to_label_2012_v2 lacks")
            index[folder] = tuple(sorted(class_indices[description] for description in shared)) or None
        used = [description for joined in descriptions.values() for description in joined.split("; ")]
        self._check_class_indices({description: class_indices[description] for description in used})
        self.class_subset = sorted({part for label in index.values() if label is not None for part in label_set(label)})
        return index

    def _check_class_indices(self, class_indices: dict[str, int]) -> None:
        """Compare with timm's class names: a mapping shifted by one line gives wrong numbers without an error."""
        info = ImageNetInfo("imagenet-1k")
        for description, label in class_indices.items():
            expected = info.index_to_description(label)
            if description.split(",")[0].strip().lower() not in expected.lower():
                raise UserError(
                    f"{self.root}/mappings gives {description!r} class {label}, which is {expected!r}:"
                    " unpack the published archive again"
                )

    def _read_mapping(self, name: str, kind: Any) -> dict[str, Any]:
        """Read a JSON object whose values are of a type."""
        try:
            return TypeAdapter(dict[str, kind]).validate_json(self._read(name))
        except ValidationError as error:
            raise UserError(
                f"{self.root / 'mappings' / name}: {first_problem(error)}: unpack the published archive again"
            ) from error

    def _read(self, name: str) -> str:
        path = self.root / "mappings" / name
        if not is_file(path):
            raise self.missing(f"there is no file {path}")
        return path.read_text(encoding="utf-8", errors="replace")
