"""From random noise to ε-approximate nullspace noise (arXiv 2403.10476, section 4)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nsaug.draws import Source, normal, uniform
from nsaug.nullspace.influence import full_precision, influence
from nsaug.settings import Count, NonNegative, Number, Positive, settings
from nsaug.vit import ViT, eval_mode


@dataclass(frozen=True)
class Refinement:
    """What a refinement ended with, for B images.

    Attributes:
        noise: (B, *vit.embedding_shape), or (1, *vit.embedding_shape) where the images share it; in units of the
            patch embeddings.
        logits: (B, C), the logits under this noise, with the graph to the model's parameters where gradients are on;
            None where the model's own mode computes something else than eval mode (dropout, batch norm).
        influence_before, influence_after: (B,), each image's influence at the start and at the end, in [0, 2].
        norm_before, norm_after: (B,) or (1,), the noise's root mean square, in units of the patch embeddings.
        reached: (B,), whether what ε bounds lies below it: the image's influence, or in scope `batch` their mean.
        steps: how many updates were made.
    """

    noise: Tensor
    logits: Tensor | None
    influence_before: Tensor
    influence_after: Tensor
    norm_before: Tensor
    norm_after: Tensor
    reached: Tensor
    steps: int


@settings
class NoiseSynthesis:
    """Refines random noise on the patch embeddings until it moves the predictions by less than ε.

    Minimises the L2 distance of the logits, as the authors do, with AdamW on the noise alone. In scope `sample` an
    image whose influence falls below ε is finished and its noise frozen; the loop ends when all are. Counting forward,
    backward to activations and backward to weights as 1 each, a training step that uses K updates costs 6 + 2 K where
    a plain one costs 3: the outer step's clean forward is the target, gradients go to the noise alone, and the forward
    that finds the influence below ε is the one whose loss is trained on.
    """

    eps: Annotated[Number, Field(gt=0, le=2)] = 0.03
    """ε bounds each image's influence (scope `sample`) or the batch's mean influence (scope `batch`)."""
    limit: Positive = 3.0
    """The noise starts in [-limit, limit], in `units`; it is not clamped afterwards."""
    lr: Positive = 0.1
    """AdamW's step: in relative units a multiple of the start's half-width, in absolute ones as in the paper."""
    steps: Count = 3
    """K, the largest number of updates; 0 leaves the noise as it was drawn."""
    scope: Literal["sample", "batch"] = "sample"
    """A noise for each image, or one that the batch shares."""
    init: Literal["uniform", "normal"] = "uniform"
    """U(-limit, limit), or a normal distribution of the same variance."""
    units: Literal["relative", "absolute"] = "relative"
    """Relative: `limit` counts in rms(u), the patch embeddings' root mean square. Absolute: in their own units."""
    weight_decay: NonNegative = 0.01
    """AdamW's, on the noise; 0.01 is torch's default, which the authors' code leaves on."""

    def refine(
        self,
        vit: ViT,
        images: Tensor,
        generator: Source = None,
        clean_logits: Tensor | None = None,
        rms: Tensor | None = None,
    ) -> Refinement:
        """Synthesises noise for a batch; leaves gradients, modes, running statistics and other generators alone.

        Args:
            images: (B, 3, H, W) in [0, 1].
            generator: draws the starting noise; on the images' device, or one for each image.
            clean_logits: (B, C), the clean images' logits if the caller has them: the target where the model's own
                mode computes the same as eval mode. Computed here otherwise.
            rms: rms(u), what relative units count in; measured on these images where None.
        """
        as_eval = computes_as_eval(vit)
        if clean_logits is None or not as_eval:
            with torch.no_grad(), eval_mode(vit):
                clean_logits = vit(images)
        unit, width = self._unit(vit, images, rms)
        noise = width * self._draw(vit, images, generator)
        with nullcontext() if as_eval else eval_mode(vit):
            return self._descend(vit, images, full_precision(clean_logits.detach()), noise, unit, keep_logits=as_eval)

    def start(self, vit: ViT, images: Tensor, generator: Source = None, rms: Tensor | None = None) -> Tensor:
        """The noise that `refine` starts from: (B or 1, *vit.embedding_shape), in units of the patch embeddings."""
        unit, width = self._unit(vit, images, rms)
        return width * unit * self._draw(vit, images, generator)

    def _unit(self, vit: ViT, images: Tensor, rms: Tensor | None) -> tuple[Tensor, float]:
        """What AdamW's step is counted in, and the start's half-width in that."""
        if self.units == "relative":
            return self.limit * (embedding_rms(vit, images) if rms is None else rms), 1.0
        return images.new_ones(()), self.limit

    def _draw(self, vit: ViT, images: Tensor, generator: Source) -> Tensor:
        """Starting noise whose uniform distribution would be U(-1, 1)."""
        shape = (len(images) if self.scope == "sample" else 1, *vit.embedding_shape)
        if self.init == "normal":
            return normal(shape, generator, images) / 3**0.5
        return uniform(shape, generator, images) * 2 - 1

    def _descend(
        self, vit: ViT, images: Tensor, target: Tensor, start: Tensor, unit: Tensor, keep_logits: bool
    ) -> Refinement:
        """The loop. `start` is the noise in multiples of `unit`, which is what AdamW's step is counted in."""
        noise = start.requires_grad_()
        optimizer = torch.optim.AdamW([noise], lr=self.lr, weight_decay=self.weight_decay)
        graph_is_wanted = keep_logits and torch.is_grad_enabled()
        finished = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        influence_before = norm_before = None
        for step in range(self.steps + 1):
            last = step == self.steps
            with torch.set_grad_enabled(graph_is_wanted or not last):
                # Nothing asks the last forward for the noise's gradient.
                logits = vit(images, (noise.detach() if last else noise) * unit)
            now = influence(logits.detach(), target)
            if influence_before is None:
                influence_before, norm_before = now, _norm(noise * unit)
            finished = finished | ((now if self.scope == "sample" else now.mean()) < self.eps)
            if last or bool(finished.all()):
                break
            self._update(noise, logits, target, finished, optimizer)
        assert influence_before is not None
        assert norm_before is not None
        return Refinement(
            noise=(noise * unit).detach(),
            logits=logits if graph_is_wanted else (logits.detach() if keep_logits else None),
            influence_before=influence_before,
            influence_after=now,
            norm_before=norm_before,
            norm_after=_norm(noise * unit),
            reached=finished,
            steps=step,
        )

    def _update(
        self,
        noise: Tensor,
        logits: Tensor,
        target: Tensor,
        finished: Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        with torch.enable_grad():
            distance = (full_precision(logits) - target).norm(dim=-1)
            # Summed where each image has its own noise, so that no image's step depends on how many there are.
            objective = distance.sum() if self.scope == "sample" else distance.mean()
        frozen = noise.detach().clone() if self.scope == "sample" else None
        # Not backward(): it would fill the parameters' .grad, which the outer step accumulates into.
        (noise.grad,) = torch.autograd.grad(objective, noise)
        optimizer.step()
        noise.grad = None
        if frozen is not None:
            with torch.no_grad():
                keep = finished.view(-1, *[1] * (noise.dim() - 1))
                noise.copy_(torch.where(keep, frozen, noise))


@torch.no_grad()
def embedding_rms(vit: ViT, images: Tensor) -> Tensor:
    """rms(u): the root mean square over all patch embeddings of these images, a scalar tensor."""
    with eval_mode(vit):  # some patch embeddings hold batch norms
        return full_precision(vit.patch_embeddings(images)).square().mean().sqrt()


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


def _norm(noise: Tensor) -> Tensor:
    return noise.detach().flatten(1).square().mean(1).sqrt()
