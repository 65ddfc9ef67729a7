"""Fast gradient sign method (Goodfellow et al., arXiv 1412.6572)."""

from typing import ClassVar

from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PixelEps, validated_dataclass


@validated_dataclass
class FGSM:
    """One step of size eps along the sign of the cross-entropy's gradient."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""

    num_steps: ClassVar[int] = 1

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`. `generator` is not used."""
        grad = gradient(cross_entropy(model, labels), images)
        return (images + self.eps * grad.sign()).clamp(0, 1).detach()
