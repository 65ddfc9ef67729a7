"""Plain finetuning, the baseline of everything else, and its two controls."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, top1
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.types import validate_args


class Clean(Method):
    """Cross-entropy on the images as they are.

    Args:
        match_compute_of: a method whose compute this one is given, as that many more epochs: the control for what a dearer
            step could have bought otherwise.
    """

    name = "clean"

    @validate_args
    def __init__(self, match_compute_of: Method | None = None) -> None:
        super().__init__()
        if match_compute_of is not None:
            self.name = "clean_same_compute"
            self.duration_factor = match_compute_of.cost

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = vit(images)
        return F.cross_entropy(logits, targets), {"top1": top1(logits, targets)}


class TwoViews(Method):
    """CE(f(x1), y) + CE(f(x2), y) for two independent augmentations of each image.

    The control for what the second cross-entropy of `Nullspace` does by its mere presence.
    """

    name = "clean_two_views"
    views = 2
    cost = 2.0

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = [vit(view) for view in images.unbind(1)]
        losses = [F.cross_entropy(each, targets) for each in logits]
        return sum(losses[1:], losses[0]), {"top1": top1(logits[0], targets)}
