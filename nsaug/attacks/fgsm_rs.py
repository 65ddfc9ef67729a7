"""FGSM from a random start, as in fast adversarial training (Wong et al., arXiv 2001.03994)."""

from typing import ClassVar

from torch import Tensor, nn

from nsaug.attacks.pgd import PGD
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PixelEps, PositiveFloat, validated_dataclass


@validated_dataclass
class FGSMRS:
    """A uniform start in the eps ball, then one step along the gradient's sign, projected back into the ball."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    alpha_ratio: PositiveFloat = 1.25
    """Step size divided by eps. The paper uses 1.25; at 2 training overfits catastrophically."""

    num_steps: ClassVar[int] = 1

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`."""
        pgd = PGD(eps=self.eps, num_steps=self.num_steps, step_size=min(1.0, self.alpha_ratio * self.eps))
        return pgd(model, images, labels, generator)
