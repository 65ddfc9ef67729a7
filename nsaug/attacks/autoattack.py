"""AutoAttack (Croce and Hein, arXiv 2003.01690), by pyautoattack."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import as_labels
from nsaug.attacks.third_party import draw_seed, preserve_state
from nsaug.utils.errors import UserError
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, UniqueTuple, validated_dataclass

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
STANDARD: tuple[AttackName, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
NUM_TARGETS = 9
"""Target classes of the standard version, which requires at least ten classes."""


@validated_dataclass
class AutoAttack:
    """An ensemble of attacks; every attack runs on the images that withstood those before it.

    With fewer than ten classes, all wrong classes are targets; with fewer than four, targeted APGD is left out, since
    its loss compares four logits. The library seeds itself once per batch, so an image's result depends on its batch.
    It logs a warning if the model is randomized, returns probabilities, or has zero gradients.
    """

    eps: NonNegativeFloat = 4 / 255
    """Radius of the ball, in pixel units."""
    norm: Literal["Linf", "L2"] = "Linf"
    attacks: UniqueTuple[AttackName] = STANDARD
    """A subset is faster, but its accuracy is not comparable to published AutoAttack numbers."""

    num_steps: ClassVar[int] = 1000

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`.

        Raises:
            UserError: pyautoattack is not installed, or no attack is left for fewer than four classes.
        """
        if self.eps == 0:  # the library divides by it
            return images
        library = optional_import("attacks", "pyautoattack")
        labels, seed = as_labels(labels), draw_seed(generator)
        with preserve_state(model, seed):
            with torch.no_grad():
                num_classes = model(images[:1]).shape[1]
            attacks = [name for name in self.attacks if name != "apgd-t" or num_classes > 3]
            if not attacks:
                raise UserError("autoattack.attacks=[apgd-t] needs four classes: add apgd-ce")
            ensemble = library.AutoAttack(
                model, norm=self.norm, eps=self.eps, seed=seed, device=images.device, version="custom", attacks=attacks
            )
            # The settings of version="standard", which the library offers for ten or more classes only.
            num_targets = min(NUM_TARGETS, num_classes - 1)
            ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = num_targets
            ensemble.apgd.n_restarts = ensemble.apgd_targeted.n_restarts = ensemble.fab.n_restarts = 1
            attacked, _ = ensemble.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
        return attacked.detach().clamp(0, 1)
