"""The interface of benchmarks that score every image."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from nsaug.attacks.checks import attack_warnings
from nsaug.data import TestDataset
from nsaug.data.datamodule import as_test_dataset
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.evaluation.metrics import PerImageScores
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import embedding_rms
from nsaug.utils.rng import make_generator
from nsaug.utils.types import NonNegativeInt, to_plain, validated_dataclass

CONDITIONS = ("clean", "relabeled", "shifted", "attacked", "corrupted", "noised")
"""Values of `ImageBenchmark.condition`."""
NUM_CHECK_IMAGES = 16
"""Number of images on which a model is checked for masked gradients."""


class Constants:
    """What is constant for a model and a data set; measured on first use, on images that are the same for all blocks.

    Args:
        model: the model, with its predictions restricted to the benchmark's classes.
        load: returns reference images (n, 3, H, W) and their labels (n,), on the model's device.
    """

    def __init__(self, model: NoisyViT, load: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._model = model
        self._load = load
        self.embedding_rms = cache(self._embedding_rms)

    @cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        return self._load()

    def _embedding_rms(self, layer: str) -> Tensor:
        """rms(u), the unit of noise at a layer."""
        return embedding_rms(self._model, self._reference[0], layer)

    @cached_property
    def attack_warnings(self) -> tuple[str, ...]:
        """Reasons why attacks may overestimate the model's robustness."""
        images, labels = (tensor[:NUM_CHECK_IMAGES] for tensor in self._reference)
        return tuple(attack_warnings(self._model, images, labels))


@dataclass(frozen=True)
class Batch:
    """Images of one block.

    Attributes:
        images: (B, 3, H, W) in [0, 1], on the model's device.
        labels: (B,), or sets of labels (B, k) padded with negative numbers; indices into the benchmark's classes.
        ids: ids of the images.
        constants: constants of the model (of `source`, if there is one) and the data set.
        source: the model to attack, if it is another one.
        show: whether the images as the model sees them are needed, for sample images.
    """

    images: Tensor
    labels: Tensor
    ids: Sequence[str]
    constants: Constants
    source: NoisyViT | None = None
    show: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def generators(self, *key: int) -> list[torch.Generator]:
        """Random numbers of every image, which depend on the key and the image's id only."""
        return [make_generator("cpu", *key, zlib.crc32(image_id.encode())) for image_id in self.ids]

    def halves(self) -> "tuple[Batch, Batch]":
        """Split the batch in two."""
        middle = len(self) // 2
        return tuple(
            replace(self, images=self.images[half], labels=self.labels[half], ids=self.ids[half])
            for half in (slice(middle), slice(middle, None))
        )  # type: ignore[return-value]


@validated_dataclass
class ImageBenchmark:
    """Scores of every image under one condition, at one strength. A subclass implements `evaluate`.

    Attributes:
        data: test data other than the model's own, with the same classes.
        classes: class indices, or the name of a list, to restrict images and predictions to; None takes those of the
            data.
    """

    data: Annotated[Any, BeforeValidator(as_test_dataset)] = None
    classes: Literal["imagenet_a", "imagenet_r"] | tuple[NonNegativeInt, ...] | None = None

    def __post_init__(self) -> None:
        if self.data is not None and not isinstance(self.data, TestDataset):
            raise ValueError("data must be one of nsaug.data")

    def evaluate(self, model: NoisyViT, batch: Batch, seed: int) -> PerImageScores:
        """Score the images of a batch; called without gradients, the model in eval mode and fp32.

        Random draws depend on the seed and an image's id only, never on the batch or on earlier calls.
        """
        raise NotImplementedError

    @property
    def condition(self) -> str:
        """What is done to the images, one of CONDITIONS."""
        return "shifted"

    @property
    def corruption_name(self) -> str | None:
        """Name of the common corruption, generated or stored; None for other benchmarks."""
        return None

    @property
    def forwards_per_image(self) -> int:
        """Approximate cost, in forward passes; a backward pass counts as two."""
        return 1

    def cost(self, num_images: int) -> int:
        """Approximate cost in forward passes of single images."""
        return self.forwards_per_image * num_images

    @property
    def notes(self) -> list[str]:
        """What readers of the results have to know."""
        return []

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that results depend on, defaults included, as plain values."""
        return to_plain(replace(self, data=None)) | {"data": self.data and self.data.cache_fields}

    def check(self, data: TestDataset) -> None:
        """Raise UserError if the benchmark does not fit the images of `data`."""

    def class_subset(self, model_data: TestDataset) -> list[int] | None:
        """Class indices to restrict images and predictions to; None for all."""
        if self.classes is not None:
            return class_subset_indices(self.classes) if isinstance(self.classes, str) else sorted(self.classes)
        class_subset = (self.data or model_data).class_subset
        return None if class_subset is None else list(class_subset)


def split_on_oom(function: Callable[[Batch], PerImageScores], batch: Batch) -> PerImageScores:
    """Call the function on a batch; a batch that does not fit in memory is halved until it does.

    Raises:
        torch.OutOfMemoryError, RuntimeError: a single image does not fit.
    """
    try:
        return function(batch)
    except RuntimeError as error:  # OutOfMemoryError is a subclass
        if len(batch) == 1 or not _is_out_of_memory(error):
            raise
    # Outside the except block: inside, the traceback would keep tensors alive.
    if batch.images.is_cuda:
        torch.cuda.empty_cache()
    return PerImageScores.concatenate([split_on_oom(function, half) for half in batch.halves()])


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
