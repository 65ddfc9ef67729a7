"""The L2 attack of Carlini and Wagner (arXiv 1608.04644), by foolbox."""

from torch import Tensor, nn

from nsaug.attacks.third_party import run_within_eps
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, PositiveFloat, PositiveInt, validated_dataclass


@validated_dataclass
class CW:
    """Minimizes the squared L2 norm plus a constant times the margin loss by Adam; fails beyond eps."""

    eps: NonNegativeFloat = 0.5
    """Radius of the L2 ball over all values of an image, in pixel units."""
    num_steps: PositiveInt = 100
    """Adam steps for every constant."""
    initial_const: PositiveFloat = 1.0
    """First constant of the binary search."""
    binary_search_steps: PositiveInt = 3
    """Number of constants tried: raised after a failure, lowered after a success."""
    step_size: PositiveFloat = 0.01
    """Learning rate of Adam."""
    confidence: NonNegativeFloat = 0.0
    """Margin by which the wrong class has to lead."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images, or the original where none was found within eps; see `Attack`.

        Raises:
            UserError: foolbox is not installed.
        """
        attack = optional_import("attacks", "foolbox.attacks").L2CarliniWagnerAttack(
            binary_search_steps=self.binary_search_steps,
            steps=self.num_steps,
            initial_const=self.initial_const,
            stepsize=self.step_size,
            confidence=self.confidence,
        )
        return run_within_eps(attack, self.eps, model, images, labels, generator)
