"""From random noise to ε-approximate nullspace noise (arXiv 2403.10476, section 4)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode, params_frozen
from nsaug.nullspace.influence import full_precision, influence
from nsaug.nullspace.scale_search import scaled
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike, normal, uniform
from nsaug.utils.types import FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat, validated_dataclass

ROUNDING = 1e-3
"""What images may lie outside [0, 1] by, as mixing them in half precision leaves them."""
GROWN = 10
"""Noise is scaled up until its root mean square is that many times the limit: an untrained model tolerates any."""


@dataclass(frozen=True)
class Refinement:
    """What a refinement ended with, for B images.

    Attributes:
        noise: (B, *vit.noise_shape(site)), or (1, ...) where the images share it; in units of what it is added to.
        logits: (B, C), the logits under this noise, with the graph to the model's parameters where gradients are on;
            None where the model's own mode computes something else than eval mode (dropout, batch norm), and where
            a loop over compiled forwards ended early.
        influence_before, influence_after: (B,), each image's influence at the start and at the end, in [0, 2].
        norm_before, norm_after: (B,) or (1,), the noise's root mean square.
        reached: (B,), whether what ε bounds lies below it: the image's influence, or of shared noise the mean.
        steps: how many updates were made.
    """

    noise: Tensor
    logits: Tensor | None
    influence_before: Tensor
    influence_after: Tensor
    norm_before: Tensor
    norm_after: Tensor
    converged: Tensor
    steps: int


@validated_dataclass
class Synthesis:
    """What every way to find ε-approximate nullspace noise is told.

    All minimise the L2 distance of the logits, as the authors do, with AdamW on the noise alone.
    """

    eps: Annotated[FiniteFloat, Field(gt=0, lt=2)] = 0.03
    """ε bounds each image's influence, or the mean influence over a batch where its images share the noise."""
    limit: PositiveFloat = 3.0
    """The noise starts in [-limit, limit], in `units`; it is not clamped afterwards."""
    lr: PositiveFloat = 0.1
    """AdamW's step: in relative units a multiple of the start's half-width, in absolute ones as in the paper."""
    init: Literal["uniform", "normal", "warm"] = "uniform"
    """U(-limit, limit), a normal distribution of the same variance, or after a uniform start the last noise found."""
    units: Literal["relative", "absolute"] = "relative"
    """Relative: `limit` counts in rms(u), the root mean square of what is added to. Absolute: in its own units."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on the noise; 0.01 is torch's default, which the authors' code leaves on."""
    layer: str = PATCH_EMBED
    """Where it is added: to what `patch_embed` returns, or to what a block is given (`blocks.3`)."""
    norm: Literal["free", "held"] = "free"
    """Held: each update keeps the noise's norm, so that it turns and does not merely shrink."""
    growth: Annotated[FiniteFloat, Field(ge=1)] = 1.0
    """What an update scales noise by that is below ε; 1: it is left as it is. The last update takes noise that is not
    below ε back to where it last was."""
    floor: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    """Noise with an influence below this share of ε is moved up, by the same gradient; 0: nothing is."""

    @property
    def lowest(self) -> float:
        """The influence below which noise is moved up, as `eps` is the one below which it is not moved down."""
        return self.floor * self.eps

    def cost(self, share: float = 1.0) -> float:
        """What a training step costs at most that has such noise on a share of its images; see `Method.cost`."""
        raise NotImplementedError

    def start(
        self, vit: NoisyViT, images: Tensor, generator: GeneratorLike = None, rms: Tensor | None = None
    ) -> Tensor:
        """The noise that it starts from, in units of what it is added to: (B or 1, *vit.noise_shape(site))."""
        unit, width = self.unit(vit, images, rms)
        return width * unit * self.draw(vit, images, generator)

    def unit(self, vit: NoisyViT, images: Tensor, rms: Tensor | None) -> tuple[Tensor, float]:
        """What AdamW's step is counted in, and the start's half-width in that."""
        if self.units == "relative":
            return self.limit * (embedding_rms(vit, images, self.layer) if rms is None else rms), 1.0
        return images.new_ones(()), self.limit

    def draw(self, vit: NoisyViT, images: Tensor, generator: GeneratorLike) -> Tensor:
        """Starting noise whose uniform distribution would be U(-1, 1); one that all images share."""
        return self._drawn((1, *vit.noise_shape(self.layer)), images, generator)

    def _drawn(self, shape: tuple[int, ...], like: Tensor, generator: GeneratorLike) -> Tensor:
        if self.init == "normal":
            return normal(shape, generator, like) / 3**0.5
        return uniform(shape, generator, like) * 2 - 1


class Descent:
    """M noises on their way below ε, one update at a time.

    Args:
        settings: of the synthesis.
        start: (M, ...), in multiples of `unit`.
        unit: what AdamW's step is counted in.

    Attributes:
        noise: (M, ...), likewise; with a gradient.
        optimizer: AdamW on it.
    """

    def __init__(self, settings: Synthesis, start: Tensor, unit: Tensor) -> None:
        self.settings = settings
        self.noise = start.requires_grad_()
        self.unit = unit
        decay = settings.weight_decay
        self.optimizer = torch.optim.AdamW([self.noise], lr=settings.lr, weight_decay=decay, fused=True)
        # Where growth may carry a noise beyond ε: the last one that was within, zero where none was.
        self._safe = torch.zeros_like(start) if settings.growth > 1 else None

    @property
    def found(self) -> Tensor:
        """The noise in units of what it is added to, without its graph."""
        return (self.noise * self.unit).detach()

    def within(self, influence: Tensor) -> Tensor:
        """Which noises, by their influence (M,), have nothing to be mended."""
        return (influence >= self.settings.lowest) & (influence < self.settings.eps)

    def update(
        self,
        distance: Tensor,
        influence: Tensor,
        within: Tensor,
        last: bool,
        averaged: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        """Moves each noise that is not `within`: down in influence, or up where it lies below the floor.

        Args:
            distance: (M,), of the logits to the clean ones, with its graph to the noise.
            influence: (M,).
            within: (M,); these are kept, or scaled up.
            last: whether no update comes after this one.
            averaged: what is done to the gradient first.
        """
        before = self.noise.detach().clone()
        with torch.enable_grad():
            # Summed, so that no noise's step depends on how many there are.
            objective = torch.where(influence < self.settings.lowest, -distance, distance).sum()
        # Not backward(): it would fill the parameters' .grad, which the outer step accumulates into.
        self.noise.grad = averaged(torch.autograd.grad(objective, self.noise)[0])
        self.optimizer.step()
        self.noise.grad = None
        with torch.no_grad():
            if self.settings.norm == "held":
                norm = root_mean_square(self.noise).clamp_min(torch.finfo(self.noise.dtype).tiny)
                self.noise.copy_(scaled(self.noise, root_mean_square(before) / norm))
            each, kept = (-1, *[1] * (before.dim() - 1)), before
            if self._safe is not None:
                self._safe = torch.where(within.view(each), before, self._safe)
                if last:
                    known = self._safe.flatten(1).any(1).view(each)
                    self.noise.copy_(torch.where(known, self._safe, self.noise))
                else:
                    most = GROWN * (1 if self.settings.units == "relative" else self.settings.limit)
                    room = (root_mean_square(before) < most).view(each)
                    kept = torch.where(room, before * self.settings.growth, before)
            self.noise.copy_(torch.where(within.view(each), kept, self.noise))


@validated_dataclass
class NoiseSynthesis(Synthesis):
    """Refines random noise for one batch, inside the training step, towards an influence in [floor ε, ε).

    In scope `sample` an image whose influence lies there is finished and its noise frozen; the loop ends when all are
    or after K updates, wherever the noise is then: `reached` says which of it is below ε. Counting forward, backward
    to activations and backward to weights as 1 each, a training step that uses K updates costs 6 + 2 K where a plain
    one costs 3: the outer step's clean forward is the target, gradients go to the noise alone, and the forward that
    finds the noise where it shall be is the one whose loss is trained on.
    """

    steps: NonNegativeInt = 3
    """K, the largest number of updates; 0 leaves the noise as it was drawn."""
    scope: Literal["sample", "batch"] = "sample"
    """A noise for each image, or one that the batch shares."""
    precision: Literal["model", "bf16"] = "model"
    """What all but the last forward compute in: as the model does, or under autocast to bfloat16."""

    def cost(self, share: float = 1.0) -> float:
        return 1 + share * (3 + 2 * self.steps) / 3

    def draw(self, vit: NoisyViT, images: Tensor, generator: GeneratorLike) -> Tensor:
        shape = (len(images) if self.scope == "sample" else 1, *vit.noise_shape(self.layer))
        return self._drawn(shape, images, generator)

    def refine(
        self,
        vit: NoisyViT,
        images: Tensor,
        generator: GeneratorLike = None,
        clean_logits: Tensor | None = None,
        rms: Tensor | None = None,
        last: Tensor | None = None,
    ) -> Refinement:
        """Synthesises noise for a batch; leaves gradients, modes, running statistics and other generators alone.

        Args:
            images: (B, 3, H, W) in [0, 1].
            generator: draws the starting noise; on the images' device, or one for each image.
            clean_logits: (B, C), the clean images' logits if the caller has them: the target where the model's own
                mode computes the same as eval mode. Computed here otherwise.
            rms: rms(u), what relative units count in; measured on these images where None.
            last: a noise found before, (M, *vit.noise_shape(site)), for `init=warm`: where it starts from instead,
                over again where it has fewer images than there are.

        Raises:
            UserError: no images, values that are no image's, an unknown site.
        """
        check_images(images)
        vit.noise_shape(self.layer)
        as_eval = computes_as_eval(vit)
        if clean_logits is None or not as_eval:
            with torch.no_grad(), eval_mode(vit):
                clean_logits = vit(images)
        unit, width = self.unit(vit, images, rms)
        if self.init == "warm" and last is not None:
            places = torch.arange(len(images) if self.scope == "sample" else 1) % len(last)
            noise = last[places.to(last.device)] / unit
        else:
            noise = width * self.draw(vit, images, generator)
        descent = Descent(self, noise, unit)
        with nullcontext() if as_eval else eval_mode(vit):
            return self._descend(vit, images, full_precision(clean_logits.detach()), descent, keep_logits=as_eval)

    def _descend(
        self, vit: NoisyViT, images: Tensor, target: Tensor, descent: Descent, keep_logits: bool
    ) -> Refinement:
        # A compiled graph to both noise and weights would compute both gradients, so that each has its own there; and a
        # loop that ends early then leaves no logits to train on.
        to_noise_alone = vit.compiles
        graph_is_wanted = keep_logits and torch.is_grad_enabled()
        shared = self.scope == "batch"
        finished = torch.zeros(len(descent.noise), dtype=torch.bool, device=images.device)
        influence_before = None
        norm_before = root_mean_square(descent.found)
        for step in range(self.steps + 1):
            last = step == self.steps
            freeze = to_noise_alone and not last
            coarse = self.precision == "bf16" and not last
            with (
                torch.set_grad_enabled(graph_is_wanted or not last),
                params_frozen(vit) if freeze else nullcontext(),
                torch.autocast(images.device.type, torch.bfloat16) if coarse else nullcontext(),
            ):
                # Nothing asks the last forward for the noise's gradient.
                noise = descent.noise.detach() if last else descent.noise
                logits = vit(images, noise * descent.unit, self.layer)
            each = influence(logits.detach(), target)
            influence_before = each if influence_before is None else influence_before
            now = each.mean(0, keepdim=True) if shared else each
            # What is finished stays so, whatever rounding makes of its influence the next time; what grows is not.
            finished = descent.within(now) | (finished if self.growth == 1 else False)
            if last or (self.growth == 1 and bool(finished.all())):
                break
            with torch.enable_grad():
                each_distance = (full_precision(logits) - target).norm(dim=-1)
                distance = each_distance.mean(0, keepdim=True) if shared else each_distance
            descent.update(distance, now, finished, last=step + 1 == self.steps)
        assert influence_before is not None
        if not keep_logits or (graph_is_wanted and freeze):
            trained_on = None
        else:
            trained_on = logits if graph_is_wanted else logits.detach()
        return Refinement(
            noise=descent.found,
            logits=trained_on,
            influence_before=influence_before,
            influence_after=each,
            norm_before=norm_before,
            norm_after=root_mean_square(descent.found),
            converged=((now < self.eps) | finished).expand(len(images)),
            steps=step,
        )


@torch.no_grad()
def embedding_rms(vit: NoisyViT, images: Tensor, layer: str = PATCH_EMBED) -> Tensor:
    """rms(u): the root mean square of all that noise is added to in these images, a scalar tensor."""
    with eval_mode(vit):  # some patch embeddings hold batch norms
        return full_precision(vit.activations(images, layer)).square().mean().sqrt()


def check_images(images: Tensor) -> None:
    """Raises UserError where a tensor is no batch of images (B, 3, H, W) in [0, 1]."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise UserError(f"images have shape {tuple(images.shape)}; they have to be (B, 3, H, W)")
    if len(images) == 0:
        raise UserError("there are no images in this batch")
    low, high = (float(each) for each in images.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # so that NaN is refused too
        raise UserError(f"images have values from {low:g} to {high:g}; they have to lie in [0, 1], not normalised")


def computes_as_eval(module: nn.Module) -> bool:
    """Whether a module, in the mode it is in, computes what it does in eval mode: no dropout, no batch statistics."""
    return not any(part.training and _differs_in_training(part) for part in module.modules())


def _differs_in_training(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, DropPath):
        return part.drop_prob > 0
    if isinstance(part, PatchDropout | PatchDropoutWithIndices):
        return part.prob > 0
    return isinstance(part, _BatchNorm)


def root_mean_square(noise: Tensor) -> Tensor:
    """Each noise's, (M,), for (M, ...)."""
    return noise.detach().flatten(1).square().mean(1).sqrt()
