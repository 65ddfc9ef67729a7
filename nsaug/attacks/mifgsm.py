"""Momentum iterative FGSM (Dong et al., arXiv 1710.06081); its images transfer well to other models."""

import torch
from torch import Tensor, nn

from nsaug.attacks.objectives import cross_entropy, gradient
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import NonNegativeFloat, NonNegativeInt, PixelEps, validated_dataclass


@validated_dataclass
class MIFGSM:
    """Steps along the sign of a decaying sum of L1-normalized gradients, projected into the eps ball and [0, 1]."""

    eps: PixelEps = 4 / 255
    """Radius of the L-inf ball, in pixel units."""
    num_steps: NonNegativeInt = 10
    step_size: PixelEps | None = None
    """In pixel units; None: eps / num_steps, as in the paper."""
    decay: NonNegativeFloat = 1.0
    """Factor on the gradient sum at every step; 0 uses the current gradient alone."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: GeneratorLike = None) -> Tensor:
        """Return the adversarial images; see `Attack`. `generator` is not used."""
        step_size = self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        objective = cross_entropy(model, labels)
        attacked, momentum = images.detach(), torch.zeros_like(images)
        for _ in range(self.num_steps):
            grad = gradient(objective, attacked)
            l1_norm = grad.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
            momentum = self.decay * momentum + grad / l1_norm
            attacked = torch.clamp(attacked + step_size * momentum.sign(), low, high)
        return attacked
