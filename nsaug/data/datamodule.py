"""Training, validation and test images of a source."""

import dataclasses
from itertools import compress
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.utils.data import DataLoader

from nsaug.data.dataset import ImageSet
from nsaug.data.samplers import (
    EvenSampler,
    PaddedDataset,
    ResumableDataLoader,
    ResumableSampler,
    SeededDataset,
    Unreadable,
    default_num_workers,
)
from nsaug.data.splits import TITLES, is_held_out, record_split
from nsaug.data.testsets.base import TestDataset
from nsaug.data.transforms import InputConfig, eval_transform, train_transform
from nsaug.utils.errors import UserError
from nsaug.utils.types import Fraction, NumWorkers, PositiveFraction, PositiveInt, validate_args

VALIDATION_NOTE = TITLES["val"]
"""Note on results that are not on test images."""


def _check_range(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("should start with the smaller number")
    return bounds


class ImageDataModule(L.LightningDataModule):
    """Training and validation images for Lightning, and a test set for evaluation.

    The validation split is a part of the source's training images; it serves to choose checkpoints and settings.
    Whether an image is in it depends on the image's id alone, so adding or removing images does not move others.

    A subclass implements `read` and sets `class_names`.

    Args:
        batch_size: images per step and device.
        num_workers: processes that load images; None for one per core, at most 8.
        val_fraction: expected share of the training images that becomes the validation split.
        crop: crop of training images: `resized` (RandomResizedCrop, as in the paper), `padded` (reflect-padded by an
            eighth of the side, then cropped at random), or `none` (as in evaluation).
        scale: range of the share of the image's area that `resized` keeps.
        hflip: probability of a horizontal flip in training.
        auto_augment: a policy in timm's notation, such as rand-m9-mstd0.5-inc1 (RandAugment) or augmix-m3-w3 (AugMix).
        max_unreadable: share of the training and validation images that may be unreadable; more of them end the run.
            Unreadable training images are replaced by the next one, unreadable validation images do not count.

    Attributes:
        class_names: by class index; set by `setup` at the latest.
        images_expected: number of test images in a complete copy, if known.
    """

    class_names: list[str]
    images_expected: ClassVar[int | None] = None

    @validate_args
    def __init__(
        self,
        *,
        batch_size: PositiveInt = 128,
        num_workers: NumWorkers | None = None,
        val_fraction: Fraction = 0.1,
        crop: Literal["resized", "padded", "none"] = "resized",
        scale: Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_check_range)] = (0.08, 1.0),
        hflip: Fraction = 0.5,
        auto_augment: str | None = None,
        max_unreadable: Fraction = 0.001,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self.val_fraction = val_fraction
        self.crop = crop
        self.scale = scale
        self.hflip = hflip
        self.auto_augment = auto_augment
        self.max_unreadable = max_unreadable
        self.train_set: ImageSet | None = None
        self.val_set: ImageSet | None = None
        self.seed = 0
        self._unreadable: dict[str, Unreadable] = {}
        self._input_size = (0, 0)

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        """List the source's own training or test images.

        Raises:
            UserError: they are missing, or their layout is not the expected one.
        """
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """List the training and validation images, once; none is decoded."""
        if self.train_set is not None:
            return
        images = self.read("train")
        held_out = [is_held_out(image_id, self.val_fraction) for image_id in images.ids]
        num_val = sum(held_out)
        if num_val == len(images) or (num_val == 0 and self.val_fraction > 0):
            raise UserError(
                f"data.val_fraction={self.val_fraction:g} of {len(images)} training images leaves"
                f" {num_val} for validation and {len(images) - num_val} for training: set another fraction"
            )
        self.val_set = images.subset(compress(range(len(images)), held_out))
        self.train_set = images.subset(index for index, held in enumerate(held_out) if not held)
        self._unreadable = {
            "train": Unreadable(self.train_set, TITLES["train"], "others replace them"),
            "val": Unreadable(self.val_set, TITLES["val"], "they do not count"),
        }

    def record_splits(self) -> dict[str, dict[str, Any]]:
        """The images of both splits, as `record_split` describes them, after `setup`."""
        assert self.train_set is not None, "call setup() first"
        assert self.val_set is not None
        return {"train": record_split(self.train_set.ids), "val": record_split(self.val_set.ids)}

    def configure(
        self, data_config: dict[str, Any], *, seed: int = 0, num_views: int = 1, view_augment: str | None = None
    ) -> None:
        """Prepare training and validation images for a model, after `setup`.

        Args:
            data_config: the model's `NoisyViT.data_config`.
            seed: of the order and the augmentation of training images.
            num_views: views of each training image; more than one give (num_views, 3, H, W).
            view_augment: a policy of timm that augments all views but the first, on the same crop; None: the views are
                independent augmentations.
        """
        assert self.train_set is not None, "call setup() first"
        assert self.val_set is not None
        config = InputConfig.from_timm(data_config)
        self.seed = seed
        self._input_size = config.size
        self.val_set.transform = eval_transform(config)
        self.train_set.transform = train_transform(
            config, self.crop, self.scale, self.hflip, self.auto_augment, num_views, view_augment
        )

    def test_dataset(self, split: Literal["test", "val"] = "test") -> TestDataset:
        """The images that evaluation reads: the source's test images, or the validation split."""
        return _SplitDataset(self, split)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def augments(self) -> bool:
        """Whether training images are augmented at all."""
        return self.crop != "none" or self.hflip > 0 or self.auto_augment is not None

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train_set is not None, "call setup() first"
        count = len(self.train_set)
        world_size, rank = self._world
        drop_last = count >= self.batch_size * world_size
        images = SeededDataset(self.train_set, self.seed, self._unreadable["train"].flags)
        sampler = ResumableSampler(
            count, self.seed, self.batch_size, drop_last, lambda: self.progress, world_size, rank
        )
        return ResumableDataLoader(images, sampler=sampler, drop_last=drop_last, **self._loader_options)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if not self.val_set:
            return []
        images = PaddedDataset(self.val_set, self._input_size, self._unreadable["val"].flags)
        sampler = EvenSampler(images, *self._world)
        return DataLoader(images, sampler=sampler, **self._loader_options)

    @property
    def _world(self) -> tuple[int, int]:
        """Number of processes, and the number of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    @property
    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    @property
    def progress(self) -> tuple[int, int]:
        """The current epoch, and how many of its batches are done; between epochs, all batches of the last one."""
        if self.trainer is None:
            return 0, 0
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return self.trainer.current_epoch, batches.processed

    def check_unreadable(self, finished: Literal["train", "val"] | None = None) -> None:
        """Count the unreadable images of all processes, which have to call this together.

        Args:
            finished: the split whose images have all been read; the first process warns of unreadable ones, once.

        Raises:
            UserError: more than `max_unreadable` of the images are unreadable; raised in all processes.
        """
        world_size, rank = self._world
        if world_size > 1:
            for split in self._unreadable.values():
                split.merge(self._max_over_processes)
        splits = [split for split in self._unreadable.values() if split.count]
        if splits and sum(split.count for split in splits) > self.max_unreadable * self._num_images:
            raise UserError(
                f"{' and '.join(map(str, splits))}, more than data.max_unreadable={self.max_unreadable:g}: repair or"
                " remove them, or raise the limit"
            )
        if finished and rank == 0:
            self._unreadable[finished].warn()

    def _max_over_processes(self, flags: Tensor) -> Tensor:
        assert self.trainer is not None
        strategy = self.trainer.strategy
        return strategy.reduce(flags.to(strategy.root_device), reduce_op="max")

    @property
    def _num_images(self) -> int:
        assert self.train_set is not None, "call setup() first"
        assert self.val_set is not None
        return len(self.train_set) + len(self.val_set)


class _SplitDataset(TestDataset):
    """One split of a data module, for evaluation."""

    def __init__(self, source: ImageDataModule, split: Literal["test", "val"]) -> None:
        super().__init__(num_workers=source.num_workers)
        self.source = source
        self.split = split
        self.title = type(source).__qualname__
        self.images_expected = source.images_expected

    def read(self) -> ImageSet:
        images = self._read_val() if self.split == "val" else self.source.read("test")
        self.class_names = self.source.class_names
        return images

    def _read_val(self) -> ImageSet:
        self.source.setup("fit")
        if not self.source.val_set:
            raise UserError("split=val: the run has no validation images (data.val_fraction=0), choose split=test")
        return dataclasses.replace(self.source.val_set)

    def find_missing(self, images: ImageSet) -> list[str]:
        return [] if self.split == "val" else super().find_missing(images)

    @property
    def notes(self) -> list[str]:
        return [VALIDATION_NOTE] if self.split == "val" else super().notes

    @property
    def cache_fields(self) -> dict[str, Any]:
        return {"class": type(self.source).__qualname__}


def as_test_dataset(data: Any, *, split: Literal["test", "val"] = "test") -> Any:
    """Return the split of an `ImageDataModule` as a `TestDataset`, and anything else unchanged.

    Raises:
        UserError: a `TestDataset` has no validation images.
    """
    if isinstance(data, ImageDataModule):
        return data.test_dataset(split)
    if split == "val":
        raise UserError(f"split=val: {data.title} has no validation images, choose split=test")
    return data
