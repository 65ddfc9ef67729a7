"""Mixup, cutmix and label smoothing: timm's implementation with its own random stream."""

from typing import Literal

from timm.data import mixup as timm_mixup
from torch import Tensor

from nsaug.utils.errors import UserError
from nsaug.utils.rng import seed_scope
from nsaug.utils.types import Fraction, NonNegativeFloat, validated_dataclass


@validated_dataclass
class Mixup:
    """Mix pairs of images and their labels, and smooth the labels; does nothing by default."""

    mixup_alpha: NonNegativeFloat = 0.0
    """Mix images with a ratio from Beta(mixup_alpha, mixup_alpha) (arXiv 1710.09412); 0: off."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """Paste a box of the other image, its area from Beta(cutmix_alpha, cutmix_alpha) (arXiv 1905.04899); 0: off."""
    prob: Fraction = 1.0
    """Probability that a batch (or pair, or image) is mixed."""
    switch_prob: Fraction = 0.5
    """Probability of cutmix instead of mixup if both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """Draw one ratio per batch, per pair of images, or per image."""
    label_smoothing: Fraction = 0.0
    """Probability mass that is spread evenly over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether images are paired, which needs an even batch size."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mixed images and their targets.

        Args:
            images: (B, 3, H, W) in [0, 1], or (B, V, 3, H, W) for V views per image, which are mixed alike.
            labels: (B,) class indices.
            num_classes: C.
            key: seed of the draws, such as (seed, stream, step, rank).

        Returns:
            The images, and (B, C) probabilities; images and labels unchanged if everything is off.

        Raises:
            UserError: an odd number of images to pair.
        """
        if not self.mixes:
            if self.label_smoothing == 0:
                return images, labels
            return images, timm_mixup.mixup_target(labels, num_classes, smoothing=self.label_smoothing).to(images.dtype)
        if len(images) % 2:
            raise UserError(
                f"mixup and cutmix pair images, and a batch has {len(images)}: use an even batch size (data.batch_size)"
            )
        mix = timm_mixup.Mixup(
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            prob=self.prob,
            switch_prob=self.switch_prob,
            mode=self.mode,
            label_smoothing=self.label_smoothing,
            num_classes=num_classes,
        )
        channels = images.clone().flatten(1, -3)  # timm mixes (B, channels, H, W) in place
        with seed_scope(*key):
            channels, targets = mix(channels, labels)
        return channels.view_as(images), targets.to(images.dtype)
