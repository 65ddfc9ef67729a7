"""Regularizers that ask for equal predictions under perturbed embeddings: SMART and R3F, made for language models."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.methods.base import LossAndMetrics, Method, check_noise_layer, symmetric_kl, top1
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, params_frozen
from nsaug.nullspace.noise import embedding_rms, eval_logits, root_mean_square, start_noise
from nsaug.utils.rng import normal
from nsaug.utils.types import NonNegativeFloat, PositiveFloat, PositiveInt, validate_args

START_STD = 0.01
"""Standard deviation of SMART's start, as a fraction of its radius, as the authors': at 0 the gradient is 0."""


class SMART(Method):
    """CE(f(u), y) + weight * D(f(u), f(u + v)), v being noise in an L-inf ball that maximizes D, in eval mode.

    D is the symmetric KL divergence, and v is found by ascents along the gradient divided by its largest element. This
    is the smoothness term of Jiang et al. (arXiv 1911.03437), without their Bregman proximal term.

    Args:
        eps: radius of the ball, in multiples of rms(u).
        num_steps: K, the number of ascents, of length 2.5 eps / K and at most eps.
        weight: of the divergence; 1 in the paper.
        layer: where the noise is added.
    """

    name = "smart"

    @validate_args
    def __init__(
        self,
        *,
        eps: PositiveFloat = 0.1,
        num_steps: PositiveInt = 1,
        weight: NonNegativeFloat = 1.0,
        layer: str = PATCH_EMBED,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.num_steps = num_steps
        self.weight = weight
        self.layer = layer
        self.cost = (6 + 2 * num_steps) / 3

    def setup(self, model: NoisyViT) -> None:
        check_noise_layer(model, self.layer, "method.layer")

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = model(images)
        noise = self.find_noise(model, images, eval_logits(model, images, logits.detach()), generator)
        return _penalized(model, images, targets, logits, noise, self.layer, self.weight)

    def find_noise(self, model: NoisyViT, images: Tensor, clean_logits: Tensor, generator: torch.Generator) -> Tensor:
        """Maximize the divergence from the clean predictions, (B, *noise_shape(layer))."""
        radius = self.eps * embedding_rms(model, images, self.layer)
        step_size = min(2.5 / self.num_steps, 1.0) * radius
        shape = len(images), *model.noise_shape(self.layer)
        noise = START_STD * radius * normal(shape, generator, images)
        with eval_mode(model), params_frozen(model):
            for _ in range(self.num_steps):
                noise.requires_grad_()
                with torch.enable_grad():
                    divergence = symmetric_kl(model(images, noise, self.layer), clean_logits).sum()
                    (gradient,) = torch.autograd.grad(divergence, noise)
                largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
                ascent = gradient / largest.view(-1, *[1] * (gradient.dim() - 1))
                noise = (noise.detach() + step_size * ascent).clamp(-radius, radius)
        return noise


class R3F(Method):
    """CE(f(u), y) + weight * D(f(u), f(u + v)), v being uniform noise and D the symmetric KL divergence.

    Aghajanyan et al. (arXiv 2008.03156).

    Args:
        scale: half-width of the noise, in multiples of rms(u).
        weight: of the divergence; 0.1 to 5 in the paper.
        layer: where the noise is added.
    """

    name = "r3f"
    cost = 2.0

    @validate_args
    def __init__(self, *, scale: PositiveFloat = 0.5, weight: NonNegativeFloat = 1.0, layer: str = PATCH_EMBED) -> None:
        super().__init__()
        self.scale = scale
        self.weight = weight
        self.layer = layer

    def setup(self, model: NoisyViT) -> None:
        check_noise_layer(model, self.layer, "method.layer")

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        logits = model(images)
        scale = self.scale * embedding_rms(model, images, self.layer)
        noise = start_noise(model, images, len(images), scale, self.layer, generator)
        return _penalized(model, images, targets, logits, noise, self.layer, self.weight)


def _penalized(
    model: NoisyViT, images: Tensor, targets: Tensor, logits: Tensor, noise: Tensor, layer: str, weight: float
) -> LossAndMetrics:
    """Cross-entropy plus the divergence under this noise."""
    clean_loss = F.cross_entropy(logits, targets)
    divergence = symmetric_kl(model(images, noise, layer), logits).mean()
    metrics = {
        "top1": top1(logits, targets),
        "clean_loss": clean_loss.detach(),
        "kl": divergence.detach(),
        "noise_rms": root_mean_square(noise).mean(),
    }
    return clean_loss + weight * divergence, metrics
