"""References for corruptions in image space: AugMix, and Gaussian noise."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, top1
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.rng import normal, uniform
from nsaug.utils.types import Fraction, NonNegativeFloat, validate_args


class AugMix(Method):
    """CE(f(x), y) + weight * JS(f(x), f(x1), f(x2)), x1 and x2 being AugMix augmentations of x.

    JS is the Jensen-Shannon divergence of the three predictions (Hendrycks et al., arXiv 1912.02781).

    Args:
        weight: of the divergence; 12 in the paper.
        policy: timm's notation of AugMix: magnitude and number of chains.
    """

    name = "augmix"
    num_views = 3
    cost = 3.0

    @validate_args
    def __init__(self, weight: NonNegativeFloat = 12.0, policy: str = "augmix-m3-w3") -> None:
        super().__init__()
        self.weight = weight
        self.view_augment = policy

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = model(images.transpose(0, 1).flatten(0, 1)).unflatten(0, (self.num_views, -1))  # (3, B, C)
        clean_loss = F.cross_entropy(logits[0], targets)
        log_p = logits.log_softmax(-1)
        log_mean = log_p.logsumexp(0) - math.log(self.num_views)
        divergence = (log_p.exp() * (log_p - log_mean)).sum(-1).mean()
        metrics = {"top1": top1(logits[0], targets), "clean_loss": clean_loss.detach(), "js": divergence.detach()}
        return clean_loss + self.weight * divergence, metrics


class GaussianNoise(Method):
    """CE(f(x + n), y), n being Gaussian noise for a random part of the images and zero for the others.

    The baseline that Rusak et al. (arXiv 2001.06057) found to be nearly as good as their adversarial noise training.

    Args:
        std: standard deviation, in pixel units; 0.5 in the paper, on ImageNet.
        prob: probability that an image gets noise; 0.5 in the paper.
    """

    name = "gaussian_noise"

    @validate_args
    def __init__(self, std: NonNegativeFloat = 0.1, prob: Fraction = 0.5) -> None:
        super().__init__()
        self.std = std
        self.prob = prob

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        noise = self.std * normal(images.shape, generator, images)
        noisy = uniform((len(images), 1, 1, 1), generator, images) < self.prob
        logits = model(torch.where(noisy, (images + noise).clamp(0, 1), images))
        return F.cross_entropy(logits, targets), {"top1": top1(logits, targets)}
