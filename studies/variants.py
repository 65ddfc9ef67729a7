"""Variants of nullspace noise that the studies compare with the default; none of them is part of the package.

    python studies/study.py variants --data imagenette ...

`VariantNoise` changes one thing at a time about the Newton steps of `nsaug.nullspace.synthesize`. `DirectedNoise` fixes
the strength instead and varies the direction. `NoiseConsistency` and `UncertaintyUnderNoise` replace the loss.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nsaug.methods import Method
from nsaug.methods.base import LossAndMetrics, kl_divergence, top1
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, params_frozen
from nsaug.nullspace import NoiseResult, NoiseSource, embedding_rms, influence, match_influence
from nsaug.nullspace.noise import Eps, eval_logits, measure_noise, root_mean_square, scale_noise, start_noise
from nsaug.nullspace.per_image import LEVEL, MAX_STEP, newton_step
from nsaug.nullspace.pixel_space import patch_projection
from nsaug.utils.rng import GeneratorLike, uniform
from nsaug.utils.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, validate_args

NUM_BISECTIONS = 10
"""Forwards that match an influence."""
Geometry = Literal["l2", "linf"]


class VariantNoise(nn.Module):
    """Nullspace noise for each image, with one change each.

    Args:
        eps: ε; with `eps_max`, of each image log-uniform in [eps, eps_max].
        init_scale: the noise starts from U(-init_scale, init_scale), in multiples of rms(u); with `init_scale_max`,
            log-uniform in that range for each image. In the space `image`, in gray levels of 255.
        num_steps: K.
        geometry: the norm in which each step is the smallest.
        space: add the noise to the patch embeddings, or to the image. In the image, the result is an adversarial
            example whose radius follows from ε. Its steps are the smallest in L-inf and solve for φ itself: from the
            little that noise on pixels changes at first, steps in log φ are too short.
        reachable: project noise and steps on what a change of the image causes.
        ramp_steps: ε grows from 0 to its value over as many steps.
    """

    step: Tensor
    name = "variant"
    layer = PATCH_EMBED
    advice = "raise nullspace.num_steps"

    @validate_args
    def __init__(
        self,
        *,
        eps: Eps = 0.03,
        eps_max: Eps | None = None,
        init_scale: PositiveFloat = 0.1,
        init_scale_max: PositiveFloat | None = None,
        num_steps: NonNegativeInt = 3,
        geometry: Geometry = "l2",
        space: Literal["patch_embed", "image"] = "patch_embed",
        reachable: bool = False,
        ramp_steps: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.eps_max = eps_max or eps
        self.init_scale = init_scale
        self.init_scale_max = init_scale_max or init_scale
        self.num_steps = num_steps
        self.geometry: Geometry = geometry
        self.space = space
        self.reachable = reachable
        self.ramp_steps = ramp_steps
        self.cost = (1 + 2 * num_steps) / 3
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        clean_logits = eval_logits(model, images, clean_logits)
        noise = self.start(model, images, generator)
        eps = log_uniform(self.eps, self.eps_max, len(images), generator, images)
        if self.ramp_steps:
            self.step += 1
            eps = eps * (self.step / self.ramp_steps).clamp(max=1)
        target, before = (LEVEL * eps).sqrt(), None
        on_image = self.space == "image"
        with eval_mode(model), params_frozen(model):
            for step in range(self.num_steps):
                noise.requires_grad_()
                with torch.enable_grad():
                    phi = root_influence(self.logits(model, images, noise), clean_logits)
                    (gradient,) = torch.autograd.grad(phi.sum(), noise)
                noise, phi = noise.detach(), phi.detach()
                before = phi.square() if before is None else before
                if on_image or self.geometry == "linf":
                    noise = newton_step_linf(noise, self.reach(model, gradient), phi, target, logarithmic=not on_image)
                else:
                    noise = newton_step(noise, self.reach(model, gradient), phi, target)
                if step == self.num_steps - 1:
                    noise = scale_noise(noise, torch.where(phi.square() >= eps, target / phi, 1.0))
        logits = self.logits(model, images, noise)
        after = influence(logits.detach(), clean_logits)
        return NoiseResult(noise, logits, after if before is None else before, after, after < eps)

    def logits(self, model: NoisyViT, images: Tensor, noise: Tensor) -> Tensor:
        return model(images, noise) if self.space == "patch_embed" else model((images + noise).clamp(0, 1))

    def start(self, model: NoisyViT, images: Tensor, generator: GeneratorLike) -> Tensor:
        scale = log_uniform(self.init_scale, self.init_scale_max, len(images), generator, images)
        if self.space == "image":
            return scale_noise(2 * uniform(images.shape, generator, images) - 1, scale / 255)
        noise = start_noise(model, images, len(images), embedding_rms(model, images), PATCH_EMBED, generator)
        return self.reach(model, scale_noise(noise, scale))

    def reach(self, model: NoisyViT, noise: Tensor) -> Tensor:
        """Project noise on the patch embeddings, (B, N, D), on what a change of the image causes."""
        if not self.reachable:
            return noise
        convolution = patch_projection(model)
        assert convolution is not None
        basis = torch.linalg.svd(convolution.weight.detach().flatten(1), full_matrices=False)[0]  # (D, rank)
        return noise @ basis @ basis.T


class DirectedNoise(nn.Module):
    """Noise for each image that has the influence ε, in a direction of a given kind.

    Args:
        eps: ε; the noise is scaled to the largest influence below it.
        direction: `random`; `descended` or `ascended`, along the gradient of the influence; `ascended_ce`, along that
            of the cross-entropy, which uses the labels.
        num_steps: number of gradient steps, of half the norm of the noise each.
    """

    name = "directed"
    layer = PATCH_EMBED
    advice = "lower nullspace.eps"

    @validate_args
    def __init__(
        self,
        *,
        eps: Eps = 0.03,
        direction: Literal["random", "descended", "ascended", "ascended_ce"] = "random",
        num_steps: NonNegativeInt = 3,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.direction = direction
        self.num_steps = 0 if direction == "random" else num_steps
        self.cost = (1 + 2 * self.num_steps + NUM_BISECTIONS) / 3

    def forward(
        self,
        model: NoisyViT,
        images: Tensor,
        targets: Tensor | None = None,
        clean_logits: Tensor | None = None,
        generator: GeneratorLike = None,
    ) -> NoiseResult:
        clean_logits = eval_logits(model, images, clean_logits)
        # Small where the direction is to be the gradient's, large where the noise is to lose influence at its norm.
        scale = 1.0 if self.direction == "descended" else 0.1
        noise = start_noise(model, images, len(images), scale * embedding_rms(model, images), PATCH_EMBED, generator)
        with eval_mode(model), params_frozen(model):
            for _ in range(self.num_steps):
                noise.requires_grad_()
                with torch.enable_grad():
                    logits = model(images, noise)
                    if self.direction == "ascended_ce":
                        assert targets is not None
                        objective = F.cross_entropy(logits, targets, reduction="sum")
                    else:
                        objective = root_influence(logits, clean_logits).sum()
                    (gradient,) = torch.autograd.grad(objective, noise)
                noise = noise.detach()
                sign = -1 if self.direction == "descended" else 1
                length = sign * MAX_STEP * root_mean_square(noise) / root_mean_square(gradient).clamp_min(1e-30)
                noise = noise + scale_noise(gradient, length)
            matched = match_influence(model, images, noise, clean_logits, self.eps, NUM_BISECTIONS)
        return measure_noise(model, images, scale_noise(noise, matched.scale), clean_logits, self.eps, PATCH_EMBED)


class NoiseConsistency(Method):
    """CE(f(u), y) + weight * KL(f(u) || f(u + v)): the divergence in place of the cross-entropy under noise.

    Args:
        noise: a noise source.
        weight: of the divergence.
    """

    @validate_args
    def __init__(self, noise: NoiseSource, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.noise = noise
        self.weight = weight
        self.name = "noise_consistency"
        self.cost = 5 / 3 + noise.cost

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> LossAndMetrics:
        clean_logits = model(images)
        result = self.noise(model, images, targets, clean_logits.detach(), generator)
        divergence = kl_divergence(result.logits, self.reference(clean_logits).log_softmax(-1)).mean()
        metrics = {
            "top1": top1(clean_logits, targets),
            "influence_before": result.influence_before.mean(),
            "influence": result.influence_after.mean(),
            "noise_rms": root_mean_square(result.noise).mean(),
            "converged": result.converged.float().mean(),
        }
        return F.cross_entropy(clean_logits, targets) + self.weight * divergence, metrics

    def reference(self, clean_logits: Tensor) -> Tensor:
        """Logits of the predictions that those under noise should equal."""
        return clean_logits


class UncertaintyUnderNoise(NoiseConsistency):
    """CE(f(u), y) + weight * KL(uniform || f(u + v)): a model should not be certain under large noise.

    With noise from a large start, which leaves the prediction unchanged, this counters over-invariance, as negative
    augmentation does for shuffled patches (Qin et al., arXiv 2110.07858).
    """

    def reference(self, clean_logits: Tensor) -> Tensor:
        return torch.zeros_like(clean_logits)


def root_influence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """φ of each image, (B,); its gradient at 0 is 0."""
    return (logits.softmax(-1) - clean_logits.softmax(-1)).norm(dim=-1)


def newton_step_linf(noise: Tensor, gradient: Tensor, phi: Tensor, target: Tensor, logarithmic: bool = True) -> Tensor:
    """`newton_step` with the smallest change in the L-inf norm: along the sign of the gradient.

    Args:
        logarithmic: solve for log φ, as `newton_step` does, or for φ itself.
    """
    slope = gradient.flatten(1).abs().sum(1)
    largest = MAX_STEP * noise.flatten(1).abs().amax(1)
    phi = phi.clamp_min(torch.finfo(phi.dtype).tiny)
    excess = phi * (phi / target).log() if logarithmic else phi - target
    length = (excess / slope).clamp(-largest, largest)
    return noise - scale_noise(gradient.sign(), torch.where(slope > 0, length, 0.0))


def log_uniform(low: float, high: float, count: int, generator: GeneratorLike, like: Tensor) -> Tensor:
    """`count` numbers from a range, uniform on a logarithmic axis; without draws if it is a point."""
    if low == high:
        return torch.full((count,), low, device=like.device, dtype=like.dtype)
    return low * (high / low) ** uniform((count, 1), generator, like)[:, 0]
