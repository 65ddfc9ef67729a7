"""Finetuning on noise at the patch embeddings; with nullspace noise, the method of arXiv 2403.10476."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, check_noise_layer, top1
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace.noise import Batches, NoiseSource, ReduceMean, root_mean_square
from nsaug.utils.types import validate_args


class NoiseAugmentation(Method):
    """CE(f(u), y) + CE(f(u + v), y), u being the patch embeddings of the images and v noise.

    Args:
        noise: where v comes from: nullspace noise, random noise, or one of your own.
    """

    @validate_args
    def __init__(self, noise: NoiseSource) -> None:
        super().__init__()
        self.noise = noise
        self.name = noise.name
        self.cost = 5 / 3 + noise.cost

    def setup(self, model: NoisyViT) -> None:
        check_noise_layer(model, self.noise.layer, "nullspace.layer")
        if hasattr(self.noise, "setup"):
            self.noise.setup(model)

    def start_epoch(
        self,
        model: NoisyViT,
        batches: Batches,
        num_batches: int,
        generator: torch.Generator,
        reduce_mean: ReduceMean,
    ) -> None:
        if hasattr(self.noise, "start_epoch"):
            self.noise.start_epoch(model, batches, num_batches, generator, reduce_mean)

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        clean_logits = model(images)
        result = self.noise(model, images, targets, clean_logits.detach(), generator)
        clean_loss = F.cross_entropy(clean_logits, targets)
        noisy_loss = F.cross_entropy(result.logits, targets)
        metrics = {
            "top1": top1(clean_logits, targets),
            "clean_loss": clean_loss.detach(),
            "noisy_loss": noisy_loss.detach(),
            "influence_before": result.influence_before.mean(),
            "influence": result.influence_after.mean(),
            "noise_rms": root_mean_square(result.noise).mean(),
            "converged": result.converged.float().mean(),
        }
        return clean_loss + noisy_loss, metrics
