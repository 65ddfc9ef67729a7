"""Adversarial training: with PGD (Madry et al., arXiv 1706.06083) or one step (Wong et al., arXiv 2001.03994)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.attacks import Attack
from nsaug.methods.base import LossAndMetrics, Method, top1
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.utils.types import validate_args


class AdversarialTraining(Method):
    """CE(f(x'), y), x' being the attacked images. The attack sees the model in eval mode.

    Args:
        attack: any attack; its `num_steps` counts the gradients that it takes.
        name: in tables.
    """

    @validate_args
    def __init__(self, attack: Attack, name: str = "pgd") -> None:
        super().__init__()
        self.attack = attack
        self.name = name
        self.cost = (3 + 2 * attack.num_steps) / 3

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        with eval_mode(model), params_frozen(model):
            attacked = self.attack(model, images, targets, generator)
        logits = model(attacked)
        return F.cross_entropy(logits, targets), {"adv_top1": top1(logits, targets)}
