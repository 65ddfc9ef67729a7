"""The standard AutoAttack (Croce and Hein, arXiv 2003.01690), by the library pyautoattack."""

from typing import Literal

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import as_labels
from nsaug.attacks.third_party import draw_seed, preserve_state
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, validated_dataclass

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
FULL: tuple[Part, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
TARGETS = 9
"""Target classes of the standard version: it wants ten classes at least."""


@validated_dataclass
class AutoAttack:
    """APGD on cross-entropy, targeted APGD, targeted FAB, and Square, one after another on what still stands.

    A model with fewer than ten classes gets as many target classes as there are others, and with fewer than four no
    targeted APGD, whose loss compares four. What it finds depends on the batch: the library seeds itself once for all
    its images. It logs what it doubts: a randomised model, gradients of 0, outputs that are probabilities.
    """

    eps: NonNegativeFloat = 4 / 255
    """Radius of the ball, in pixel units."""
    norm: Literal["Linf", "L2"] = "Linf"
    attacks: tuple[Part, ...] = FULL
    """Fewer of them are no AutoAttack, but quicker."""

    num_steps = 1000
    """About how many forwards an image costs, which the forecast of the time left goes by."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; arguments as for `PGD`.

        Raises:
            UserError: pyautoattack is not installed.
        """
        if self.eps == 0:  # the library divides by it
            return images
        attack = optional_import("attacks", "pyautoattack").AutoAttack
        labels, seed = as_labels(labels), draw_seed(generator)
        with preserve_state(model, seed):
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            found = attack(
                model, norm=self.norm, eps=self.eps, seed=seed, device=images.device, version="custom",
                attacks=[part for part in self.attacks if part != "apgd-t" or classes > 3],
            )  # fmt: skip
            targets = min(TARGETS, classes - 1)
            # The standard version's settings, which the library sets for ten classes and more alone.
            found.apgd_targeted.n_target_classes = found.fab.n_target_classes = targets
            found.apgd.n_restarts = found.apgd_targeted.n_restarts = found.fab.n_restarts = 1
            attacked, _ = found.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
        return attacked.detach().clamp(0, 1)
