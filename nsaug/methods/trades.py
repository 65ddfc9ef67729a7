"""TRADES (Zhang et al., arXiv 1901.08573): accuracy on clean images, and stable predictions around them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.attacks import PGDBase
from nsaug.methods.base import LossAndMetrics, Method, kl_divergence, top1
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.utils.errors import UserError
from nsaug.utils.rng import normal
from nsaug.utils.types import NonNegativeFloat, validate_args

START_STD = 0.001
"""Standard deviation of the start, in pixel units, as in the authors' code: at the image itself the gradient is 0."""


class TRADES(Method):
    """CE(f(x), y) + beta KL(f(x) || f(x')), x' being where PGD makes that divergence largest, in eval mode.

    Args:
        attack: radius, steps and step size. Without its random start it starts from x + 0.001 N(0, 1), as the authors'
            does.
        beta: weight of the divergence; 6 in the paper, 1 for more accuracy on clean images.
    """

    name = "trades"

    @validate_args
    def __init__(self, attack: PGDBase, beta: NonNegativeFloat = 6.0) -> None:
        super().__init__()
        if (attack.restarts, attack.loss) != (1, "ce"):
            raise UserError(
                "method=trades maximizes its own divergence, once: set method.attack.restarts=1 method.attack.loss=ce"
            )
        self.attack = attack
        self.beta = beta
        self.cost = (7 + 2 * attack.num_steps) / 3

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        with eval_mode(model), params_frozen(model):
            with torch.no_grad():
                clean = model(images).log_softmax(-1)
            if self.attack.random_start:
                start = self.attack.random_init(images, generator)
            else:
                start = (images + START_STD * normal(images.shape, generator, images)).clamp(0, 1)
            attacked = self.attack.ascend(lambda x: kl_divergence(model(x), clean).sum(), images, start)
        logits, attacked_logits = model(images), model(attacked)
        loss = F.cross_entropy(logits, targets)
        divergence = kl_divergence(attacked_logits, logits.log_softmax(-1)).mean()
        metrics = {
            "top1": top1(logits, targets),
            "adv_top1": top1(attacked_logits, targets),
            "clean_loss": loss.detach(),
            "kl": divergence.detach(),
        }
        return loss + self.beta * divergence, metrics
