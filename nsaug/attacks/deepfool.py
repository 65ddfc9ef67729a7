"""DeepFool (Moosavi-Dezfooli et al., arXiv 1511.04599), by foolbox."""

from torch import Tensor, nn

from nsaug.attacks.third_party import run_within_eps
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, PositiveInt, validated_dataclass


@validated_dataclass
class DeepFool:
    """Steps to the nearest decision boundary of the linearized model; fails where that is farther than eps."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units."""
    num_steps: PositiveInt = 50
    candidates: PositiveInt = 10
    """Number of most likely classes whose boundaries are considered."""
    overshoot: NonNegativeFloat = 0.02
    """Fraction by which every step goes beyond the boundary."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images, or the original where none was found within eps; see `Attack`.

        Raises:
            UserError: foolbox is not installed.
        """
        attack = optional_import("attacks", "foolbox.attacks").L2DeepFoolAttack(
            steps=self.num_steps, candidates=self.candidates, overshoot=self.overshoot
        )
        return run_within_eps(attack, self.eps, model, images, labels, generator)
