"""The interface of everything that finetunes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nsaug.vit import ViT

Loss = tuple[Tensor, dict[str, Tensor]]


class Method(nn.Module):
    """Turns a batch into a loss. What it must remember between steps is a buffer, so that a checkpoint holds it.

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
    longer: float = 1.0

    def prepare(self, vit: ViT, images: Tensor, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Called with the first batch, before step 0 and outside autocast; not again after a resume.

        Args:
            images: as for `loss`, but not mixed; this rank's own.
            mean_over_ranks: averages a tensor over all ranks; each rank has to call it equally often.
        """

    def loss(self, vit: ViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> Loss:
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
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).float().mean()
