"""The LightningModule: a method, an optimiser, metrics. Nothing else."""

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy

from nsaug.attacks import Attack
from nsaug.data import SeededDataset
from nsaug.methods import Method
from nsaug.models.noisy_vit import NoisyViT, check_compile
from nsaug.training.mixup import Mixup
from nsaug.training.param_groups import Finetune, freeze, freeze_bn_stats, parameter_groups
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream, make_generator, seed_torch
from nsaug.utils.types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    validated_dataclass,
)

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor, Any]


@validated_dataclass
class AdamWConfig:
    """AdamW with linear warm-up and cosine decay to zero, both per step; no weight decay on biases and norms."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    warmup: Fraction = 0.05
    """Share of all steps over which the learning rate rises."""
    layer_decay: PositiveFraction = 1.0
    """Each layer learns by this factor slower than the one after it; 1: all alike."""


class NonFiniteLoss(UserError):
    """A batch's loss is infinite or not a number: its gradients would spoil the weights."""


class Finetuner(L.LightningModule):
    """Finetunes a ViT by a method.

    `training_step` is where the two loops alternate: a method such as `Nullspace` refines this batch's noise (inner),
    and returns the loss that the optimiser then steps on (outer, automatic optimisation).

    Args:
        vit: the model.
        method: from a batch to a loss.
        optim: the optimiser's settings.
        seed: with step and rank, what all random draws of the method are a function of.
        attack: what `val/adv_top1` is measured under; None leaves it out.
        val_attack_batches: how many validation batches are attacked; the first ones.
        mixing: what is done to images and labels together before the method sees them.
        finetune: which weights learn: `all`, `head`, or `last_N` blocks and all that follows them.
        max_nonfinite_batches: how many batches whose loss is not finite may be skipped in a run; one more ends it.
    """

    def __init__(
        self,
        vit: NoisyViT,
        method: Method,
        optim: AdamWConfig,
        seed: int,
        attack: Attack | None = None,
        val_attack_batches: NonNegativeInt = 4,
        mixing: Mixup = Mixup(),  # noqa: B008  (frozen)
        finetune: Finetune = "all",
        max_nonfinite_batches: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.method = method
        self.optim = optim
        self.seed = seed
        self.attack = attack
        self.val_attack_batches = val_attack_batches
        self.mixing = mixing
        method.setup(vit)
        freeze(vit.model, finetune)
        accuracy = partial(MulticlassAccuracy, num_classes=vit.model.num_classes, average="micro")
        self.max_nonfinite_batches = max_nonfinite_batches
        self.skipped = 0
        self.val_top1 = accuracy()
        self.val_attacked_top1 = accuracy()

    def on_train_epoch_start(self) -> None:
        freeze_bn_stats(self.vit)
        draws = make_generator(self.device, self.seed, Stream.UNIVERSAL_NOISE, self.current_epoch)
        with self.trainer.precision_plugin.forward_context():
            count = int(self.trainer.num_training_batches)
            self.method.start_epoch(self.vit, self._epoch_batches, count, draws, self._reduce_mean)

    def _reduce_mean(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="mean")

    def _epoch_batches(self, number: int, count: int) -> Iterator[Tensor]:
        """The first batches of a round over this epoch's training images, in an order of its own."""
        loader: Any = self.trainer.train_dataloader
        size, ranks = loader.batch_size, self.trainer.world_size
        key = (self.seed, Stream.UNIVERSAL_ORDER, self.current_epoch, number)
        order = torch.randperm(len(loader.dataset), generator=make_generator("cpu", *key))[: count * size * ranks]
        positions: list[Any] = order[self.global_rank :: ranks].tolist()
        if isinstance(loader.dataset, SeededDataset):  # augmented otherwise than in the epoch's own steps
            positions = [(self.current_epoch, 1 + number, position) for position in positions]
        mine = Subset(loader.dataset, positions)
        for images, *_ in DataLoader(mine, size, num_workers=loader.num_workers):
            yield self.trainer.precision_plugin.convert_input(images.to(self.device))

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether a step may be taken on a loss; where not, the batch is skipped on all ranks, or the run ends."""
        broken = (~loss.detach().isfinite()).float()
        if self.max_nonfinite_batches:
            broken = self._reduce_mean(broken)
        if not broken:
            return True
        self.skipped += 1
        step = self.trainer.fit_loop.total_batch_idx
        if self.skipped > self.max_nonfinite_batches:
            raise NonFiniteLoss(
                f"batch {step}: the loss is {float(loss.detach()):g}; lower optim.lr or nullspace.init_scale, or let"
                f" max_nonfinite_batches={self.skipped} batches go by"
            )
        log.warning(
            "batch %d is skipped: its loss is not finite (%d of %d)", step, self.skipped, self.max_nonfinite_batches
        )
        return False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images, labels, _ = batch
        # Batches, not optimiser steps: under gradient accumulation each batch draws anew.
        step, rank = self.trainer.fit_loop.total_batch_idx, self.global_rank
        images, targets = self.mixing(images, labels, self.vit.model.num_classes, (self.seed, Stream.MIXUP, step, rank))
        draws = make_generator(self.device, self.seed, Stream.TRAINING, step, rank)
        seed_torch(self.seed, Stream.LAYERS, step, rank)  # what dropout and drop path draw from
        with self.vit.compiled():
            loss, values = self.method.loss(self.vit, images, targets, draws)
        if not self._is_finite(loss):
            return None
        self.log("train/loss", loss.detach(), prog_bar=True)
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name in ("influence", "converged"))
        # The head's, where layers differ.
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        logits = self.vit(images)
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(images), sync_dist=True)
        self.val_top1(logits, labels)
        self.log("val/top1", self.val_top1, prog_bar=True)
        if self.attack is not None and batch_idx < self.val_attack_batches:
            draws = make_generator(self.device, self.seed, Stream.VALIDATION, batch_idx, self.global_rank)
            self.val_attacked_top1(self.vit(self.attack(self.vit, images, labels, draws)), labels)
            self.log("val/adv_top1", self.val_attacked_top1, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = checkpoint["skipped"]

    def on_fit_start(self) -> None:
        if self.vit.compile_forward:
            check_compile(self.device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optim = self.optim
        groups = parameter_groups(self.vit.model, optim.lr, optim.weight_decay, optim.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
        total = int(self.trainer.estimated_stepping_batches)
        factor = partial(warmup_cosine, total=total, warmup=round(self.optim.warmup * total))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """The learning rate at a step as a share of its peak: linear from 1/(warmup + 1), then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
