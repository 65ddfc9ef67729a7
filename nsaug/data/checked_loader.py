"""Loaders of a user's own program: any iterable of batches (images, labels), checked batch by batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace.noise import PIXEL_TOLERANCE
from nsaug.utils.errors import UserError


@dataclass(frozen=True)
class BatchFormat:
    """What the batches of a loader have to be for a model.

    Attributes:
        name: of the loader, in messages.
        image_shape: (3, H, W).
        dtype: what images are converted to.
        num_classes: of the model.
        num_views: views of every image, in the second dimension of images if there are several.
    """

    name: str
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    num_views: int = 1

    @classmethod
    def of(cls, vit: NoisyViT, name: str, num_views: int = 1) -> "BatchFormat":
        """The format that a model takes."""
        dtype = next(vit.parameters()).dtype
        return cls(name, tuple(vit.data_config["input_size"]), dtype, vit.model.num_classes, num_views)

    def read(self, batch: Any) -> tuple[Tensor, Tensor, list[str] | None]:
        """Images, labels in int64, and ids if the batch has a third part with one text per image.

        Raises:
            UserError: what is wrong with the batch, in one line.
        """
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            kind = (
                f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
            )
            raise UserError(f"{self.name} yields a {kind}: a batch should be a tuple (images, labels)")
        images, labels = self._images(batch[0]), self._labels(batch[1])
        if len(images) != len(labels):
            raise UserError(f"{self.name} yields a batch of {len(images)} images and {len(labels)} labels")
        self._check_classes(labels)
        ids: Any = batch[2] if len(batch) > 2 else None
        has_ids = isinstance(ids, list | tuple) and len(ids) == len(images) and all(isinstance(i, str) for i in ids)
        return images, labels, list(ids) if has_ids else None

    def _images(self, images: Any) -> Tensor:
        views = (self.num_views,) if self.num_views > 1 else ()
        expected = f"(B, {', '.join(map(str, (*views, *self.image_shape)))})"
        if not isinstance(images, Tensor):
            raise UserError(f"{self.name} yields images as {type(images).__name__}: they should be a tensor {expected}")
        if images.shape[1:] != (*views, *self.image_shape) or not len(images):
            reason = "resize images to the input of the model, RGB"
            if self.num_views > 1 and images.dim() == 4:
                reason = f"this method takes {self.num_views} views of every image"
            raise UserError(f"{self.name} yields images of shape {tuple(images.shape)}, not {expected}: {reason}")
        if not images.is_floating_point():
            raise UserError(f"{self.name} yields images of {images.dtype}: divide them by 255, as floats in [0, 1]")
        low, high = map(float, images.aminmax())
        if 0 <= low <= high <= 1:
            return images.to(self.dtype)
        if low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE:
            return images.clamp(0, 1).to(self.dtype)
        normalized = "nsaug normalizes inside the model, leave Normalize out of the transform"
        if not math.isfinite(low + high):
            advice = "look for divisions by zero in the transform"
        elif low >= 0:
            advice = "divide them by 255" if high > 2 else "clamp them to [0, 1]"
        elif low > -0.5 and high < 1.5:
            advice = f"clamp them to [0, 1], or, if they are normalized: {normalized}"
        else:
            advice = normalized
        raise UserError(f"{self.name} yields images with values from {low:g} to {high:g}, not in [0, 1]: {advice}")

    def _labels(self, labels: Any) -> Tensor:
        if not isinstance(labels, Tensor):
            raise UserError(f"{self.name} yields labels as {type(labels).__name__}: they should be a tensor (B,)")
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            kind = f"labels of {labels.dtype} and shape {tuple(labels.shape)}"
            raise UserError(f"{self.name} yields {kind}: they should be class indices, (B,)")
        return labels.long()

    def _check_classes(self, labels: Tensor) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise UserError(f"{self.name} yields the label {low}: class indices start at 0")
        if high >= self.num_classes:
            raise UserError(
                f"{self.name} yields the label {high}, and the model has the classes 0 to {self.num_classes - 1}: build"
                f" it with more, such as timm.create_model(..., num_classes={high + 1})"
            )


class CheckedLoader:
    """The batches of a user's loader for `Finetuner`, checked.

    Attributes:
        batch_size: of the first batch; 0 before it is read.

    Raises:
        UserError: the loader is empty, or has no length.
    """

    def __init__(self, loader: Any, batch_format: BatchFormat) -> None:
        name = batch_format.name
        if not hasattr(loader, "__iter__"):
            raise UserError(f"{name} is a {type(loader).__name__}: pass a DataLoader, or a list of (images, labels)")
        try:
            self._length = len(loader)
        except TypeError as error:
            raise UserError(
                f"{name} has no length, which the learning rate depends on: pass a DataLoader of a data set with a"
                " length, or a list of batches"
            ) from error
        if not self._length:
            raise UserError(f"{name} is empty")
        self.batch_size = 0
        self._loader = loader
        self._format = batch_format

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, tuple[()]]]:
        # A generator: a DataLoader with persistent workers starts over whenever an iterator is requested.
        count = 0
        for batch in self._loader:
            count += 1
            images, labels, _ = self._format.read(batch)
            self.batch_size = self.batch_size or len(images)
            yield images, labels, ()
        if count < self._length:
            raise UserError(
                f"{self._format.name} yields {count} batches, and its length is {self._length}: its __len__ should"
                " return the number of batches"
            )
