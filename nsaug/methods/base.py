"""The interface of everything that finetunes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsaug.attacks.objectives import as_labels
from nsaug.models.noisy_vit import NoisyViT

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]
MeanReduce = Callable[[Tensor], Tensor]
"""Averages a tensor over all ranks; each rank has to call it equally often."""
Batches = Callable[[int, int], Iterable[Tensor]]
"""From a round's number and how many batches of it are wanted to those batches, (B, 3, H, W) in [0, 1]."""


class Method(nn.Module):
    """Turns a batch into a loss. What it must know from one step to the next it tells a checkpoint.

    Attributes:
        name: what tables call it.
        views: how many independently augmented views of each image it wants.
        cost: what a step costs in plain steps, counting forward, backward to activations and backward to weights as 1
            each; at most, where a loop may end early. `benchmarks/step_cost.py` measures it.
        longer: the factor by which a run has more epochs (or steps) than it was told.
    """

    name: str
    views: int = 1
    cost: float = 1.0
    duration_factor: float = 1.0

    def check(self, vit: NoisyViT) -> None:
        """Called before anything starts; raises UserError where this model cannot be finetuned so."""

    def prepare(self, vit: NoisyViT, images: Tensor, reduce_mean: MeanReduce) -> None:
        """Called with the first batch, before step 0 and outside autocast; not again after a resume.

        Args:
            images: as for `loss`, but not mixed; this rank's own.
        """

    def start_epoch(
        self, vit: NoisyViT, batches: Batches, count: int, generator: torch.Generator, reduce_mean: MeanReduce
    ) -> None:
        """Called at each epoch's start, before `prepare` at the first one's.

        Args:
            batches: of this epoch's training images, augmented but not mixed; this rank's own.
            count: how many of them an epoch has, on each rank.
            generator: on the model's device, seeded by (seed, epoch): the same on all ranks.
        """

    def remembered(self) -> dict[str, Any]:
        """What this rank has to know to go on exactly where it was, beyond parameters and buffers; plain values."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Takes back what `remembered` told, on the device of the model."""

    def loss(self, vit: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        """The loss to minimise, and what to log.

        Args:
            vit: in train mode; the graph to its parameters is wanted.
            images: (B, 3, H, W) in [0, 1]; (B, views, 3, H, W) for a method that wants several views.
            targets: (B,) class indices, or (B, C) probabilities where mixup, cutmix or label smoothing is on.
            generator: on the images' device, seeded by (seed, step, rank): all that is drawn is drawn from it.

        Returns:
            A scalar with a graph, and scalars without one by the name under which they are logged.
        """
        raise NotImplementedError


def top1(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the images (B,) whose likeliest class is that of their target, index or probabilities."""
    return (logits.argmax(1) == as_labels(targets)).float().mean()


def kl_divergence(logits: Tensor, clean_log_probabilities: Tensor) -> Tensor:
    """KL(clean || moved) of each image, (B,), from logits (B, C) and log-probabilities (B, C)."""
    return F.kl_div(logits.log_softmax(-1), clean_log_probabilities, reduction="none", log_target=True).sum(-1)
