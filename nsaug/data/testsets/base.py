"""Images to evaluate on."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from nsaug.data.dataset import ImageSet, label_set
from nsaug.data.samplers import default_num_workers
from nsaug.data.transforms import InputConfig, eval_transform, stored_transform
from nsaug.utils.errors import UserError
from nsaug.utils.text import preview
from nsaug.utils.types import NumWorkers, validate_args

log = logging.getLogger(__name__)


class TestDataset:
    """Images to evaluate on. A subclass implements `read` and sets `class_names`.

    Args:
        num_workers: processes that load images; None for one per core, at most 8.

    Attributes:
        title: name in messages.
        class_names: by class index; set by `setup` at the latest.
        class_subset: class indices among which predictions are made; None for all.
        images_expected: number of images in a complete copy, if known.
        condition: what benchmarks on these images report as their condition.
        stored_size: side in pixels of square images that are evaluated as they are stored; None for the model's own
            resize and crop.
    """

    __test__ = False  # not a test class for pytest

    title: str
    class_names: list[str]
    class_subset: Sequence[int] | None = None
    images_expected: int | None = None
    condition: ClassVar[str] = "shifted"
    stored_size: ClassVar[int | None] = None

    @validate_args
    def __init__(self, *, num_workers: NumWorkers | None = None) -> None:
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self._images: ImageSet | None = None
        self._missing_notes: list[str] = []
        self._input_config: InputConfig | None = None

    def read(self) -> ImageSet:
        """List the images.

        Raises:
            MissingData: there are none.
            UserError: their layout is not the expected one.
        """
        raise NotImplementedError

    def setup(self, stage: str = "test") -> None:
        """List the images, once; none is decoded."""
        if stage != "test":
            raise UserError(f"{self.title} is for evaluation only: train on other data, such as data=imagenet")
        if self._images is None:
            self._images = self.read()
            self._missing_notes = self.find_missing(self._images)
            for note in self._missing_notes:
                log.warning("%s: %s", self.title, note)

    def configure(self, data_config: dict[str, Any]) -> None:
        """Prepare images for a model, given its `NoisyViT.data_config`."""
        self._input_config = InputConfig.from_timm(data_config)
        self.images.transform = self.transform(self._input_config)

    def transform(self, config: InputConfig) -> Callable[[Any], Tensor]:
        """The transform of a loaded image for a model."""
        return eval_transform(config) if self.stored_size is None else stored_transform(self.stored_size, config)

    @property
    def images(self) -> ImageSet:
        assert self._images is not None, "call setup() first"
        return self._images

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def cache_fields(self) -> dict[str, Any]:
        """What results depend on besides the images."""
        return {"class": type(self).__qualname__}

    @property
    def notes(self) -> list[str]:
        """What readers of results have to know about the images."""
        notes = list(self._missing_notes)
        if self.stored_size is not None and self._input_config is not None:
            size = "x".join(map(str, dict.fromkeys(self._input_config.size)))
            if size != str(self.stored_size):
                notes.append(f"resized from {self.stored_size} to {size} px")
        return notes

    def find_missing(self, images: ImageSet) -> list[str]:
        """Notes on classes without images and on missing images."""
        expected = range(self.num_classes) if self.class_subset is None else self.class_subset
        present = {index for label in images.labels for index in label_set(label)}
        empty = [self.class_names[index] for index in expected if index not in present]
        notes = [f"{len(empty):,} of {len(expected):,} classes have no images ({preview(empty)})"] if empty else []
        if self.images_expected is not None and len(images) < self.images_expected:
            notes.append(f"{len(images):,} of {self.images_expected:,} images are there")
        return notes
