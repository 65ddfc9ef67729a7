"""Plain finetuning: the baseline of everything else."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.method import Method
from nsaug.vit import ViT


class Clean(Method):
    """Cross-entropy on the images as they are."""

    name = "clean"

    def loss(
        self, vit: ViT, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = vit(images)
        top1 = (logits.argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"top1": top1}
