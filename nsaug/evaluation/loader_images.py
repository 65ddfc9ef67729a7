"""Test images from a loader of a user's own program."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nsaug.data import ImageSet, InputConfig, TestDataset
from nsaug.data.checked_loader import BatchFormat
from nsaug.data.fingerprints import hash_bytes
from nsaug.evaluation.subset import Subset
from nsaug.utils.errors import UserError
from nsaug.utils.types import check_unique


class LoaderImages(TestDataset):
    """The images of a loader, which is read once; they stay in memory.

    A batch may have ids as its third part, one text per image. Random draws depend on the id of an image; without ids
    it is the number of the image.

    Args:
        loader: yields batches (images, labels) or (images, labels, ids).
        batch_format: what they have to be.
        class_names: by class index.

    Attributes:
        keep: subsets that may be selected; images in none of them are dropped. None keeps all images.
    """

    title = "loader"

    def __init__(self, loader: Iterable[Any], batch_format: BatchFormat, class_names: Sequence[str]) -> None:
        super().__init__(num_workers=0)
        self.class_names = list(class_names)
        self._loader = loader
        self._format = batch_format
        self.keep: Sequence[Subset] | None = None

    def read(self) -> ImageSet:
        """Read the loader.

        Raises:
            UserError: it is empty, a batch is not what it has to be, or two images share an id.
        """
        name = self._format.name
        if not hasattr(self._loader, "__iter__"):
            kind = type(self._loader).__name__
            raise UserError(f"{name} is a {kind}: pass a DataLoader, or another iterable of (images, labels)")
        ids: list[str] = []
        labels: list[int] = []
        kept: dict[int, Tensor] = {}
        for batch in self._loader:
            images, batch_labels, batch_ids = self._format.read(batch)
            numbers = range(len(ids), len(ids) + len(images))
            ids += batch_ids or [f"{number:08d}" for number in numbers]
            labels += batch_labels.tolist()
            kept |= {number: image.cpu().clone() for number, image in zip(numbers, images, strict=True)}
            if self.keep is not None:
                kept = self._drop(kept, ids, labels)
        if not ids:
            raise UserError(f"{name} is empty")
        try:
            check_unique(ids)
        except ValueError as error:
            raise UserError(f"{name} yields ids that are not unique ({error}): leave the ids out") from error
        return ImageSet(ids, labels, _Tensors(kept))

    def _drop(self, kept: dict[int, Tensor], ids: list[str], labels: list[int]) -> dict[int, Tensor]:
        """The images that the subsets may still select."""
        assert self.keep is not None
        numbers = list(kept)
        images = ImageSet([ids[i] for i in numbers], [labels[i] for i in numbers], _Tensors(kept))
        chosen = {numbers[position] for subset in self.keep for position in subset.select(images)[0]}
        return {number: kept[number] for number in sorted(chosen)}

    def transform(self, config: InputConfig) -> Callable[[Any], Tensor]:
        return _unchanged


def _unchanged(image: Tensor) -> Tensor:
    return image


@dataclass(frozen=True)
class _Tensors:
    """Loads images from a dict by position."""

    images: dict[int, Tensor]

    def __call__(self, index: int) -> Tensor:
        return self.images[index]

    def fingerprint(self, index: int) -> str:
        return hash_bytes(self.images[index].numpy().tobytes())
