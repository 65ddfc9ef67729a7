"""DAmageNet: universal adversarial examples made from ImageNet's validation images."""

from pathlib import Path
from typing import Any

from nsaug.data.dataset import ImageSet, Label
from nsaug.data.files import FileLoader, find_images, folder_names, labeled_files, relative_ids
from nsaug.data.names import VAL_IMAGE_NAME, wnids
from nsaug.data.testsets.published import PublishedDataset
from nsaug.utils.errors import UserError
from nsaug.utils.files import is_dir, is_file, read_lines
from nsaug.utils.types import Text, validate_args

_CLASS_INDICES = frozenset(str(index) for index in range(len(wnids())))


class DAmageNet(PublishedDataset):
    """Adversarial examples in one folder, 224 px (Chen et al., IEEE TPAMI 2020).

    Args:
        labels: ImageNet's folder, which contains val/WNID/, or a text file with a file name and a class index per
            line; an adversarial example has the label of the validation image with the same number.
        kwargs: see `PublishedDataset`.
    """

    title = "DAmageNet"
    folder = "DAmageNet"
    homepage = "https://github.com/Sizhe-Chen/DAmageNet"
    stored_size = 224
    images_expected = 50_000

    @validate_args
    def __init__(self, *, labels: Text, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = Path(labels).expanduser()
        self._num_unlabeled = 0

    @property
    def notes(self) -> list[str]:
        count = self._num_unlabeled
        return super().notes + ([f"{count:,} images have no label in {self.labels}"] if count else [])

    def list_images(self) -> ImageSet:
        paths = find_images(self.root)
        if not paths:
            raise self.missing(f"{self.root} has no images")
        labels = self._read_labels()
        labeled = [path for path in paths if _number(path) in labels]
        self._num_unlabeled = len(paths) - len(labeled)
        if not labeled:
            raise self.missing(f"no image in {self.root} has a label in {self.labels}")
        return ImageSet(
            relative_ids(labeled, self.root), [labels[_number(path)] for path in labeled], FileLoader(labeled)
        )

    def _read_labels(self) -> dict[str, Label]:
        """Labels by image number."""
        if is_file(self.labels):
            lines = read_lines(str(self.labels), "data.labels", "a file name and a class index per line")
            pairs = [line.rsplit(maxsplit=1) for line in lines]
            if not all(len(pair) == 2 and pair[1] in _CLASS_INDICES for pair in pairs):
                raise UserError(f"{self.labels}: each line has to be a file name and a class index from 0 to 999")
            return {_number(name): int(label) for name, label in pairs}
        folder = self.labels / "val" if is_dir(self.labels / "val") else self.labels
        if not is_dir(folder) or not folder_names(folder):
            raise self.missing(f"its labels are those of ImageNet's val/WNID/, and {self.labels} has no such folder")
        paths, labels = labeled_files(folder, {name: label for label, name in enumerate(wnids())})
        return {_number(path): label for path, label in zip(paths, labels, strict=True)}


def _number(name: str) -> str:
    """The number of a validation image in a file name, or the whole stem."""
    stem = Path(name).stem
    match = VAL_IMAGE_NAME.search(stem)
    return match[1] if match else stem
