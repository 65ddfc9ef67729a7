"""What is done to a batch's images and labels together: mixup, cutmix, label smoothing (timm's)."""

from typing import Literal

from timm.data import mixup as timm_mixup
from torch import Tensor

from nsaug.utils.errors import UserError
from nsaug.utils.rng import seed_scope
from nsaug.utils.types import Fraction, NonNegativeFloat, validated_dataclass


@validated_dataclass
class Mixup:
    """Blends pairs of images and their labels, and smooths the labels; by default it does nothing."""

    mixup: NonNegativeFloat = 0.0
    """Images are blended by a share from Beta(mixup, mixup) (arXiv 1710.09412); 0 for none."""
    cutmix: NonNegativeFloat = 0.0
    """A box whose area is a share from Beta(cutmix, cutmix) comes from the other image (arXiv 1905.04899); 0: none."""
    prob: Fraction = 1.0
    """Probability that a batch (or pair, or image) is mixed at all."""
    switch_prob: Fraction = 0.5
    """Probability of cutmix rather than mixup where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """One draw for the whole batch, for each pair of images, or for each image."""
    label_smoothing: Fraction = 0.0
    """Share of the probability that is spread evenly over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether images are paired, so that a batch needs an even number of them."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mixed images and what they are to be taken for.

        Args:
            images: (B, 3, H, W) in [0, 1], or (B, V, 3, H, W) for V views of each image, which are mixed alike.
            labels: (B,) class indices.
            num_classes: C.
            key: what the draws are a function of, e.g. (seed, step, rank).

        Returns:
            The images, and the labels as they were, or (B, C) probabilities where anything is on.

        Raises:
            UserError: an odd number of images to pair.
        """
        if not self.mixes:
            if self.label_smoothing == 0:
                return images, labels
            return images, timm_mixup.mixup_target(labels, num_classes, smoothing=self.label_smoothing).to(images.dtype)
        if len(images) % 2:
            raise UserError(f"mixup and cutmix pair images: a batch of {len(images)} leaves one, set data.batch_size")
        mix = timm_mixup.Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.prob,
            switch_prob=self.switch_prob,
            mode=self.mode,
            label_smoothing=self.label_smoothing,
            num_classes=num_classes,
        )
        channels = images.clone().flatten(1, -3)  # timm works in place, and asks no more than (B, channels, H, W)
        with seed_scope(*key):
            channels, targets = mix(channels, labels)
        return channels.view_as(images), targets.to(images.dtype)
