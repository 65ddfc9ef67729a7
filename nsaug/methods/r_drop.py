"""R-Drop (Liang et al., arXiv 2106.14448): equal predictions under two draws of dropout."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, symmetric_kl, top1
from nsaug.models.noisy_vit import NoisyViT, has_dropout
from nsaug.utils.errors import UserError
from nsaug.utils.types import NonNegativeFloat, validate_args


class RDrop(Method):
    """CE(f1(x), y) + CE(f2(x), y) + weight / 2 * (KL(f1 || f2) + KL(f2 || f1)), f1 and f2 with their own dropout.

    The model needs dropout or stochastic depth.

    Args:
        weight: of the divergence; 0.6 for vision transformers in the paper.
    """

    name = "r_drop"
    cost = 2.0

    @validate_args
    def __init__(self, weight: NonNegativeFloat = 0.6) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, model: NoisyViT) -> None:
        if not has_dropout(model):
            raise UserError(
                "method=r_drop compares predictions under two draws of dropout, and this model has none: set"
                " model.drop_path_rate=0.1, or 'model.args={drop_rate: 0.1}'"
            )

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits, other_logits = model(images), model(images)
        cross_entropy = F.cross_entropy(logits, targets) + F.cross_entropy(other_logits, targets)
        divergence = symmetric_kl(logits, other_logits).mean() / 2
        metrics = {"top1": top1(logits, targets), "clean_loss": cross_entropy.detach() / 2, "kl": divergence.detach()}
        return cross_entropy + self.weight * divergence, metrics
