"""Plain finetuning, the baseline, and two controls."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, top1
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validate_args


class Clean(Method):
    """Cross-entropy on the images as they are.

    Args:
        match_compute_of: a method with a costlier step; this one then runs for as many more epochs, as a control for
            what the same compute buys otherwise.
    """

    name = "clean"

    @validate_args
    def __init__(self, match_compute_of: Method | None = None) -> None:
        super().__init__()
        if match_compute_of is not None:
            self.name = "clean_same_compute"
            self.duration_factor = match_compute_of.cost

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = model(images)
        return F.cross_entropy(logits, targets), {"top1": top1(logits, targets)}


class TwoViews(Method):
    """CE(f(x1), y) + CE(f(x2), y) for two independent augmentations of each image.

    The control for what a second cross-entropy does by itself.
    """

    name = "clean_two_views"
    num_views = 2
    cost = 2.0

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = [model(view) for view in images.unbind(1)]
        losses = [F.cross_entropy(view_logits, targets) for view_logits in logits]
        return sum(losses[1:], losses[0]), {"top1": top1(logits[0], targets)}
