"""What the methods share that add noise to the patch embeddings."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from nsaug.methods.base import Batches, MeanReduce, Method
from nsaug.models.noisy_vit import PATCH_EMBED, NoisyViT, eval_mode
from nsaug.nullspace import (
    EpochSynthesis,
    NoiseSynthesis,
    Refinement,
    Synthesis,
    computes_as_eval,
    embedding_rms,
    influence,
)
from nsaug.utils.errors import UserError


class NoiseMethod(Method):
    """Holds a synthesis, the unit it counts in, and the noise found last.

    Args:
        synthesis: the noise's scope, start, and how it is refined.
        share: of each batch, its first images, that is trained on with noise, too.
        weight: of the loss under noise, that of the clean loss being 1.

    Attributes:
        found: the last refinement, where another goes on from it: the epoch's, or with `init=warm` the last batch's.
    """

    rms: Tensor

    def __init__(self, synthesis: Synthesis, share: float, weight: float) -> None:
        super().__init__()
        self.synthesis = synthesis
        self.share = share
        self.weight = weight
        # rms(u) of the first batch: kept, so that a resumed run counts `limit` in the same unit. NaN: not measured.
        self.register_buffer("rms", torch.tensor(float("nan")))
        self.found: Refinement | None = None

    def check(self, vit: NoisyViT) -> None:
        vit.noise_shape(self.synthesis.layer)
        if vit.grad_checkpointing and self.synthesis.layer != PATCH_EMBED:
            raise UserError(
                "blocks that are computed again in the backward would lack the noise given to them: set"
                f" model.grad_checkpointing=false, or nullspace.layer={PATCH_EMBED}"
            )

    def prepare(self, vit: NoisyViT, images: Tensor, reduce_mean: MeanReduce) -> None:
        if self.rms.isnan():
            self.rms.copy_(reduce_mean(embedding_rms(vit, images, self.synthesis.layer).square()).sqrt())

    def start_epoch(
        self, vit: NoisyViT, batches: Batches, count: int, generator: torch.Generator, reduce_mean: MeanReduce
    ) -> None:
        if not isinstance(self.synthesis, EpochSynthesis):
            return
        updates = self.synthesis.updates(count)
        self.prepare(vit, next(iter(batches(0, 1))), reduce_mean)
        self.found = self.synthesis.learn(
            vit,
            lambda number: batches(number, updates),
            count,
            generator,
            rms=self.rms,
            last=None if self.found is None else self.found.noise,
            reduce_mean=reduce_mean,
        )

    def noised(self, batch: Tensor) -> Tensor:
        """Those of a batch's images, or of what belongs to each, that get noise: the first ones, at least one."""
        return batch[: max(1, round(self.share * len(batch)))]

    def refine(self, vit: NoisyViT, images: Tensor, clean_logits: Tensor, generator: torch.Generator) -> Refinement:
        """A training batch's noise, which the next batch's goes on from with `init=warm`."""
        found = self.noise_for(vit, images, clean_logits, generator)
        if self.synthesis.init == "warm":
            self.found = dataclasses.replace(found, logits=None)
        return found

    def noise_for(self, vit: NoisyViT, images: Tensor, clean_logits: Tensor, generator: torch.Generator) -> Refinement:
        """Noise refined for a batch, or the epoch's, with what the epoch's does to this batch; nothing is kept."""
        if isinstance(self.synthesis, NoiseSynthesis):
            last = None if self.found is None else self.found.noise
            return self.synthesis.refine(vit, images, generator, clean_logits, self.rms, last)
        assert self.found is not None, "start_epoch has not been called"
        return self._on(vit, images, clean_logits, self.found)

    def _on(self, vit: NoisyViT, images: Tensor, clean_logits: Tensor, found: Refinement) -> Refinement:
        if computes_as_eval(vit):
            noisy: Tensor | None
            noisy = logits = vit(images, found.noise, self.synthesis.layer)
            target = clean_logits
        else:
            noisy = None
            with torch.no_grad(), eval_mode(vit):
                logits, target = vit(images, found.noise, self.synthesis.layer), vit(images)
        each = influence(logits.detach(), target.detach())
        converged = (each.mean() < self.synthesis.eps).expand(len(images))
        return dataclasses.replace(found, logits=noisy, influence_after=each, converged=converged)

    def remembered(self) -> dict[str, Any]:
        # No buffer: its shape is the batch's, and DDP would give all ranks rank 0's.
        found = {} if self.found is None else vars(self.found)
        return {name: each.cpu() if isinstance(each, Tensor) else each for name, each in found.items()}

    def recall(self, memory: dict[str, Any]) -> None:
        device = self.rms.device
        moved: dict[str, Any] = {
            name: each.to(device) if isinstance(each, Tensor) else each for name, each in memory.items()
        }
        self.found = Refinement(**moved) if memory else None
