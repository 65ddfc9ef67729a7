"""What all sources share: images with an id, three splits, and how an image is prepared for a model."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor, v2

from nsaug.data.dataset import ImageSet, label_set, preview
from nsaug.data.samplers import ResumableDataLoader, ResumableSampler, SeededDataset, SkipUnreadable, collate_readable
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.types import Fraction, NonNegativeInt, PositiveInt, validate_args

log = logging.getLogger(__name__)

VALIDATION = "validation images"
"""What is said of numbers on them, where test images are usual."""
VAL_SPLIT_SEED = 0
"""The validation split is the same whatever a run's seed, so that runs can be compared on it."""


@dataclass(frozen=True)
class InputConfig:
    """How a model wants its images, as timm resolves it."""

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class _Views:
    """Independent results of one random transform, stacked."""

    transform: Callable[[Image.Image], Tensor]
    count: int

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([self.transform(image) for _ in range(self.count)])


class ImageDataModule(L.LightningDataModule):
    """Train, val and test images. Subclasses say where they come from.

    `val` is carved out of the source's training images: it chooses checkpoints and settings. `test` is what the source
    itself holds out (ImageNet's and CIFAR-10's val/ folder); evaluation alone reads it.

    Args:
        batch_size: images per step and device.
        num_workers: processes that load images; None takes one per core, 8 at most.
        val_fraction: share of the training images that becomes the validation split.
        crop: how a training image is cropped: `resized` (RandomResizedCrop, the paper's), `padded` (reflect-padded by
            an eighth, then cropped at random), or `none` (as in evaluation).
        scale: the range of the area that `resized` keeps, as shares of the image.
        hflip: probability of a horizontal flip in training.
        auto_augment: a policy in timm's notation, such as rand-m9-mstd0.5-inc1 (RandAugment) or augmix-m3-w3 (AugMix).
        unreadable: the share of training images that may turn out to be unreadable, and are replaced by their
            neighbours; more of them end the run.

    Attributes:
        views: how often each training image is augmented independently; where more than once, its tensor is
            (views, 3, H, W). Set it before `configure_for`.
        seed: of the training images' order and augmentation.
        judged: which split counts as `test`, what evaluation reads. Set it before `setup`.
        class_names: by class index.
        counted: the class indices that an answer may name, where it is not all of them.
    """

    class_names: list[str]
    class_subset: Sequence[int] | None = None
    condition: ClassVar[str] = "shifted"
    """What a benchmark on these images says of them, where they are not the judged model's own data."""
    images_expected: ClassVar[int | None] = None
    """How many test images the source holds where it is whole."""

    @validate_args
    def __init__(
        self,
        *,
        batch_size: PositiveInt = 128,
        num_workers: NonNegativeInt | None = None,
        val_fraction: Fraction = 0.1,
        crop: Literal["resized", "padded", "none"] = "resized",
        scale: tuple[Fraction, Fraction] = (0.08, 1.0),
        hflip: Fraction = 0.5,
        auto_augment: str | None = None,
        unreadable: Fraction = 0.001,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.val_fraction = val_fraction
        self.crop = crop
        self.scale = scale
        self.hflip = hflip
        self.auto_augment = auto_augment
        self.unreadable = unreadable
        self._unreadable: Tensor = torch.zeros(0, dtype=torch.bool)
        self._told = 0
        self.views = 1
        self.seed = 0
        self.judged: Literal["test", "val"] = "test"
        self.train_set: ImageSet | None = None
        self.val_set: ImageSet | None = None
        self.test_set: ImageSet | None = None
        self._input_config: InputConfig | None = None
        self._gaps: list[str] = []

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def test_images(self) -> ImageSet:
        """The test split; `setup("test")` has found it."""
        assert self.test_set is not None, "call setup('test') first"
        return self.test_set

    @property
    def told(self) -> dict[str, Any]:
        """What a result on the test images depends on beyond the images themselves."""
        return {"class": type(self).__qualname__}

    @property
    def augments(self) -> bool:
        """Whether a training image is ever seen otherwise than it is."""
        return self.crop != "none" or self.hflip > 0 or self.auto_augment is not None

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        """The source's own training or test images; sets `class_names`.

        Raises:
            UserError: the data are not there, or not laid out as expected.
        """
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Finds the images of `fit` (train and val) or `test`; reads none of them."""
        if stage in ("fit", "validate", None) and self.train_set is None:
            images = self.read("train")
            order = np.random.default_rng(VAL_SPLIT_SEED).permutation(len(images))
            held_out = round(self.val_fraction * len(images))
            if held_out == len(images) or (held_out == 0 and self.val_fraction > 0):
                raise UserError(
                    f"data.val_fraction={self.val_fraction:g} of {len(images)} training images leaves"
                    f" {held_out} for validation and {len(images) - held_out} for training: set another share"
                )
            self.val_set = images.subset(np.sort(order[:held_out]).tolist())
            self.train_set = images.subset(np.sort(order[held_out:]).tolist())
        if stage in ("test", None) and self.test_set is None:
            if self.judged == "val":
                self.test_set, self._gaps = self._validation_images(), [VALIDATION]
            else:
                self.test_set = self.read("test")
                self._gaps = self._missing()
                for gap in self._gaps:
                    log.warning("%s: %s", type(self).__name__, gap)
        self._set_transforms()

    def _validation_images(self) -> ImageSet:
        self.setup("fit")
        assert self.val_set is not None
        if not self.val_set:
            raise UserError("split=val: the run has no validation images (data.val_fraction=0), choose split=test")
        return dataclasses.replace(self.val_set)

    def configure_for(self, data_config: dict[str, Any]) -> None:
        """Prepares images as a model wants them, given timm's data configuration of it (`ViT.data_config`)."""
        self._input_config = InputConfig(
            size=tuple(data_config["input_size"][1:]),
            crop_pct=data_config["crop_pct"],
            interpolation=data_config["interpolation"],
            crop_mode=data_config["crop_mode"],
            mean=tuple(data_config["mean"]),
        )
        self._set_transforms()

    def _set_transforms(self) -> None:
        if self._input_config is None:
            return
        for images in (self.val_set, self.test_set):
            if images is not None:
                images.transform = eval_transform(self._input_config)
        if self.train_set is not None:
            self.train_set.transform = self._train_transform(self._input_config)

    def _train_transform(self, input_config: InputConfig) -> Callable[[Image.Image], Tensor]:
        if self.crop == "resized":
            mode = str_to_interp_mode(input_config.interpolation)
            steps: list[Any] = [v2.RandomResizedCrop(input_config.size, self.scale, interpolation=mode)]
        else:
            steps = _fitted(input_config)
        if self.auto_augment is not None:
            steps.append(_policy(self.auto_augment, input_config))
        steps.append(ToTensor())
        if self.crop == "padded":  # on tensors: reflecting the border of a PIL image costs three times as much
            steps.append(v2.RandomCrop(input_config.size, max(input_config.size) // 8, padding_mode="reflect"))
        if self.hflip:
            steps.append(v2.RandomHorizontalFlip(self.hflip))
        transform = v2.Compose(steps)
        return transform if self.views == 1 else _Views(transform, self.views)

    @property
    def notes(self) -> list[str]:
        """What a reader of numbers on the test images has to know of them, once they were found."""
        return self._gaps

    def _missing(self) -> list[str]:
        """What the test images lack, with counts."""
        wanted = range(self.num_classes) if self.class_subset is None else self.class_subset
        seen = {index for label in self.test_images.labels for index in label_set(label)}
        empty = [self.class_names[index] for index in wanted if index not in seen]
        gaps = [f"{len(empty):,} of {len(wanted):,} classes have no images ({preview(empty)})"] if empty else []
        if self.images_expected is not None and len(self.test_images) < self.images_expected:
            gaps.append(f"{len(self.test_images):,} of {self.images_expected:,} images are there")
        return gaps

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train_set is not None
        count = len(self.train_set)
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        whole = count >= self.batch_size * ranks
        self._unreadable = torch.zeros(count, dtype=torch.bool).share_memory_()
        images = SeededDataset(self.train_set, self.seed, self._unreadable)
        order = ResumableSampler(count, self.seed, self.batch_size, whole, lambda: self.place, ranks, rank)
        return self.loader(images, ResumableDataLoader, sampler=order, drop_last=whole)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Says which training images could not be read; raises UserError where they are too many."""
        count = int(self._unreadable.sum())
        if count > self._told:
            assert self.train_set is not None
            names = [self.train_set.ids[index] for index in self._unreadable.nonzero()[:, 0].tolist()]
            told = f"{count:,} of {len(self.train_set):,} training images"
            if count > self.unreadable * len(self.train_set):
                raise UserError(
                    f"{told} cannot be read ({preview(names)}), and data.unreadable={self.unreadable:g} of them may be:"
                    " mend or remove them, or raise it"
                )
            log.warning("%s cannot be read (%s): others take their places", told, preview(names))
            self._told = count
        return batch

    @property
    def place(self) -> tuple[int, int]:
        """The epoch that a run is in, and how many batches of it (or, at its start, of the one before) are done."""
        if self.trainer is None:
            return 0, 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return self.trainer.current_epoch, progress.processed

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self.loader(self.val_set) if self.val_set else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test_images)

    def readable_loader(self, images: ImageSet) -> DataLoader[Any]:
        """As `loader`, but images that cannot be read are left out; a batch with nothing left is None."""
        return self.loader(SkipUnreadable(images), collate_fn=collate_readable)

    def loader(self, images: Dataset[Any], kind: type[DataLoader[Any]] = DataLoader, **kwargs: Any) -> DataLoader[Any]:
        """Batches of (images (B, 3, H, W) in [0, 1], labels (B,), ids); `kwargs` go to the DataLoader."""
        return kind(
            images,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )


def eval_transform(input_config: InputConfig) -> Callable[[Image.Image], Tensor]:
    """timm's own for the model, up to and without the normalisation: (3, H, W) in [0, 1]."""
    return v2.Compose([*_fitted(input_config), ToTensor()])


def _policy(name: str, input_config: InputConfig) -> Callable[[Image.Image], Image.Image]:
    """timm's augmentation policy of this name, with timm's own choice of fill colour and shifts for the image size."""
    options = {"is_training": True, "interpolation": input_config.interpolation, "mean": input_config.mean}
    try:
        whole = create_transform((3, *input_config.size), auto_augment=name, **options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"data.auto_augment={name} is no policy that timm knows ({first_line(error)}):"
            " try rand-m9-mstd0.5-inc1, augmix-m3-w3, or null"
        ) from error
    (policy,) = (step for step in whole.transforms if isinstance(step, AutoAugment | RandAugment | AugMixAugment))
    return policy


def _fitted(input_config: InputConfig) -> list[Any]:
    """timm's resize and crop for evaluation, on PIL images."""
    whole = create_transform(
        (3, *input_config.size),
        is_training=False,
        interpolation=input_config.interpolation,
        crop_pct=input_config.crop_pct,
        crop_mode=input_config.crop_mode,
        normalize=False,
    )
    return [step for step in whole.transforms if not type(step).__name__.endswith("ToTensor")]
