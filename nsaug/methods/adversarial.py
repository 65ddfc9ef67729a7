"""Adversarial training: Madry et al. (arXiv 1706.06083), and with one step from a random start (arXiv 2001.03994)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.attacks import FGSMRS, PGD
from nsaug.methods.base import LossAndMetrics, Method, top1
from nsaug.models.noisy_vit import NoisyViT, eval_mode, params_frozen
from nsaug.utils.types import validate_args


class AdversarialTraining(Method):
    """CE(f(x'), y), x' being the attacked images. The attack sees the model in eval mode.

    Args:
        attack: what is trained against; it also gives the method its name, `pgd` or `fgsm_rs`.
    """

    @validate_args
    def __init__(self, attack: PGD | FGSMRS) -> None:
        super().__init__()
        self.attack: Any = attack
        self.name = "pgd" if isinstance(attack, PGD) else "fgsm_rs"
        self.cost = (3 + 2 * attack.num_steps) / 3

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        with eval_mode(vit), params_frozen(vit):
            attacked = self.attack(vit, images, targets, generator)
        logits = vit(attacked)
        return F.cross_entropy(logits, targets), {"adv_top1": top1(logits, targets)}
