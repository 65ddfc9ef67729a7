"""Transforms from PIL images to tensors (3, H, W) in [0, 1]; models normalize inside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import ToTensor, v2

from nsaug.utils.errors import UserError, first_line


@dataclass(frozen=True)
class InputConfig:
    """The images that a model takes, as timm describes them.

    Attributes:
        size: height and width in pixels.
        crop_pct: share of the resized image's side that the evaluation crop keeps.
        mean: fill color of augmentations, RGB in [0, 1].
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_timm(cls, data_config: dict[str, Any]) -> Self:
        """Read timm's data configuration of a model (`NoisyViT.data_config`)."""
        return cls(
            size=tuple(data_config["input_size"][1:]),
            crop_pct=data_config["crop_pct"],
            interpolation=data_config["interpolation"],
            crop_mode=data_config["crop_mode"],
            mean=tuple(data_config["mean"]),
        )


@dataclass(frozen=True)
class MultiView:
    """Apply a random transform several times and stack the results: (num_views, 3, H, W)."""

    transform: Callable[[Image.Image], Tensor]
    num_views: int

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([self.transform(image) for _ in range(self.num_views)])


@dataclass(frozen=True)
class AugmentedViews:
    """Stack an image and random augmentations of it, as tensors: (num_views, 3, H, W)."""

    augment: Callable[[Image.Image], Image.Image]
    num_views: int

    def __call__(self, image: Image.Image) -> Tensor:
        views = [image, *(self.augment(image) for _ in range(self.num_views - 1))]
        return torch.stack([ToTensor()(view) for view in views])


@dataclass(frozen=True)
class CheckSize:
    """Refuse images that differ in size from the published ones."""

    size: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != (self.size, self.size):
            raise UserError(
                f"images of this set are stored at {self.size} x {self.size} px, this copy has one of"
                f" {image.width} x {image.height} px: unpack the published archive again"
            )
        return image


def train_transform(
    config: InputConfig,
    crop: str,
    scale: tuple[float, float],
    hflip: float,
    auto_augment: str | None,
    num_views: int = 1,
    view_augment: str | None = None,
) -> Callable[[Image.Image], Tensor]:
    """Crop, augment and flip at random; for the arguments see `ImageDataModule` and its `configure`.

    Raises:
        UserError: timm does not know the augmentation policy.
    """
    if crop == "resized":
        mode = str_to_interp_mode(config.interpolation)
        steps: list[Any] = [v2.RandomResizedCrop(config.size, scale, interpolation=mode)]
    else:
        steps = _resize_and_crop(config)
    if auto_augment is not None:
        steps.append(_auto_augment(auto_augment, config, "data.auto_augment"))
    if view_augment is None:
        steps.append(ToTensor())
    else:  # what follows draws once for all views
        steps.append(AugmentedViews(_auto_augment(view_augment, config, "method.policy"), num_views))
    if crop == "padded":  # on tensors: reflect-padding a PIL image takes three times as long
        steps.append(v2.RandomCrop(config.size, max(config.size) // 8, padding_mode="reflect"))
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    transform = v2.Compose(steps)
    return transform if num_views == 1 or view_augment is not None else MultiView(transform, num_views)


def eval_transform(config: InputConfig) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform for the model, without normalization."""
    return v2.Compose([*_resize_and_crop(config), ToTensor()])


def stored_transform(size: int, config: InputConfig) -> Callable[[Image.Image], Tensor]:
    """Keep images that are published at the size that models see; resize them for models of another input size."""
    steps: list[Any] = [CheckSize(size)]
    if config.size != (size, size):
        steps.append(v2.Resize(config.size, str_to_interp_mode(config.interpolation)))
    return v2.Compose([*steps, ToTensor()])


def _auto_augment(policy: str, config: InputConfig, setting: str) -> Callable[[Image.Image], Image.Image]:
    """timm's augmentation policy, which `setting` names, with timm's own fill color and range for the input size."""
    options = {"is_training": True, "interpolation": config.interpolation, "mean": config.mean}
    try:
        steps = create_transform((3, *config.size), auto_augment=policy, **options).transforms
        (augment,) = (step for step in steps if isinstance(step, AutoAugment | RandAugment | AugMixAugment))
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{setting}={policy} is not a policy of timm ({first_line(error)}): try rand-m9-mstd0.5-inc1 or"
            " augmix-m3-w3"
        ) from error
    return augment


def _resize_and_crop(config: InputConfig) -> list[Any]:
    """The part of timm's evaluation transform that works on PIL images."""
    transform = create_transform(
        (3, *config.size),
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        normalize=False,
    )
    return [step for step in transform.transforms if not type(step).__name__.endswith("ToTensor")]
