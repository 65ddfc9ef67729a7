"""One step from a random start, what fast adversarial training uses (Wong et al., arXiv 2001.03994)."""

from torch import Tensor, nn

from nsaug.attacks.pgd import PGD
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PixelEps, PositiveFloat, validated_dataclass


@validated_dataclass
class FGSMRS:
    """A uniform draw from the eps ball, then one step along the sign of the gradient, projected back into the ball."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    step: PositiveFloat = 1.25
    """Size of the step in units of eps; 1.25 in the paper, which finds that 2 overfits catastrophically."""

    num_steps = 1

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; arguments as for `PGD`."""
        once = PGD(eps=self.eps, num_steps=self.num_steps, step_size=min(1.0, self.step * self.eps))
        return once(model, images, labels, generator)
