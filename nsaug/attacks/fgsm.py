"""Fast gradient sign method (Goodfellow et al., arXiv 1412.6572)."""

from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PixelEps, validated_dataclass


@validated_dataclass
class FGSM:
    """One step of size eps along the sign of the loss's gradient."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1], for images (B, 3, H, W) in [0, 1] and labels (B,)."""
        grad = gradient(cross_entropy(model, labels), images).sign()
        return (images + self.eps * grad).clamp(0, 1).detach()
