"""The interface of everything that finetunes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nsaug.vit import ViT


class Method(nn.Module):
    """Turns a batch into a loss. What it must remember between steps is a buffer, so that a checkpoint holds it."""

    name: str
    """What tables call it."""

    def prepare(self, vit: ViT, images: Tensor, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Called with the first batch, before step 0 and outside autocast; not again after a resume.

        Args:
            images: (B, 3, H, W) in [0, 1], this rank's own.
            mean_over_ranks: averages a tensor over all ranks; each rank has to call it equally often.
        """

    def loss(
        self, vit: ViT, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and what to log.

        Args:
            vit: in train mode; the graph to its parameters is wanted.
            images: (B, 3, H, W) in [0, 1].
            labels: (B,) class indices.
            generator: on the images' device, seeded by (seed, step, rank): all that is drawn is drawn from it.

        Returns:
            A scalar with a graph, and scalars without one by the name under which they are logged.
        """
        raise NotImplementedError
