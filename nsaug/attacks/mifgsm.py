"""The momentum iterative method, whose images transfer better (Dong et al., arXiv 1710.06081)."""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, NonNegativeInt, PixelEps, validated_dataclass


@validated_dataclass
class MIFGSM:
    """Steps along the sign of a decaying sum of gradients, each of L1 norm 1, within the L-inf ball and [0, 1]."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    num_steps: NonNegativeInt = 10
    step_size: PixelEps | None = None
    """In pixel units; eps / num_steps where None, as in the paper."""
    decay: NonNegativeFloat = 1.0
    """What of the sum is left at each step: 0 forgets it."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Attacked images, (B, 3, H, W) in [0, 1]; arguments as for `PGD`, of which `generator` is not used."""
        step_size = self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        objective = cross_entropy(model, labels)
        attacked, total = images.detach(), torch.zeros_like(images)
        for _ in range(self.num_steps):
            grad = gradient(objective, attacked)
            size = grad.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
            total = self.decay * total + grad / size
            attacked = torch.clamp(attacked + step_size * total.sign(), low, high)
        return attacked
