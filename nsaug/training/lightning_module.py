"""The LightningModule: a method, an optimizer, metrics."""

import itertools
import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from nsaug.attacks import Attack
from nsaug.data import SeededDataset
from nsaug.data.dataset import PAD_LABEL
from nsaug.methods import Method
from nsaug.models.noisy_vit import NoisyViT, check_compile
from nsaug.training.fsdp import gathered, shard
from nsaug.training.mixup import Mixup
from nsaug.training.param_groups import Trainable, freeze, freeze_bn_stats, parameter_groups
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream, make_generator, seed_torch
from nsaug.utils.types import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    validated_dataclass,
)

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor, Any]
Momentum = Annotated[FiniteFloat, Field(ge=0, lt=1)]


@validated_dataclass
class AdamWConfig:
    """AdamW with linear warm-up and cosine decay to zero, per step; no weight decay on biases and norms."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    warmup: Fraction = 0.05
    """Fraction of all steps over which the learning rate rises."""
    layer_decay: PositiveFraction = 1.0
    """The learning rate of a layer is this factor times that of the next layer; 1: the same for all."""


class NonFiniteLoss(UserError):
    """The loss of a batch is infinite or NaN; its gradients would corrupt the weights."""


class Finetuner(L.LightningModule):
    """Finetune a ViT by a method, with automatic optimization.

    A method such as `NoiseAugmentation` synthesizes the noise of the batch inside its `loss`; the optimizer then takes
    a step on the returned loss.

    Args:
        vit: the model.
        method: turns a batch into a loss.
        optim: settings of the optimizer.
        seed: all random draws are functions of (seed, step, rank).
        attack: the attack for `val/adv_top1`; None skips it.
        val_attack_batches: number of validation batches that are attacked, from the first one on; several processes
            attack as many images as one.
        mixup: applied to images and labels before the method.
        trainable: `all`, `head`, or `last_N` blocks and the layers after them.
        max_nonfinite_batches: number of batches with a non-finite loss that are skipped; one more ends the run.
    """

    def __init__(
        self,
        vit: NoisyViT,
        method: Method,
        optim: AdamWConfig,
        seed: int,
        attack: Attack | None = None,
        val_attack_batches: NonNegativeInt = 4,
        mixup: Mixup = Mixup(),  # noqa: B008  (frozen)
        trainable: Trainable = "all",
        max_nonfinite_batches: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.method = method
        self.optim = optim
        self.seed = seed
        self.attack = attack
        self.val_attack_batches = val_attack_batches
        self.mixup = mixup
        method.setup(vit)
        freeze(vit.model, trainable)
        self.max_nonfinite_batches = max_nonfinite_batches
        self.skipped = 0
        self._loss = torch.tensor(0.0)
        self._skips = False
        num_classes = vit.model.num_classes
        accuracy = partial(MulticlassAccuracy, num_classes=num_classes, average="micro", ignore_index=PAD_LABEL)
        self.val_loss = MeanMetric(nan_strategy="disable")  # by default it would leave out NaN
        self.val_top1 = accuracy()
        self.val_adv_top1 = accuracy()

    def configure_model(self) -> None:
        """Shard the model if the strategy does (`trainer=fsdp`)."""
        if self.device_mesh is not None and not isinstance(self.vit, FSDPModule):
            shard(self.vit, self.device_mesh["data_parallel"])

    def on_train_epoch_start(self) -> None:
        freeze_bn_stats(self.vit)
        generator = make_generator(self.device, self.seed, Stream.UNIVERSAL_NOISE, self.current_epoch)
        with self.trainer.precision_plugin.forward_context(), gathered(self.vit):
            count = int(self.trainer.num_training_batches)
            self.method.start_epoch(self.vit, self._epoch_batches, count, generator, self._reduce_mean)

    def _reduce_mean(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="mean")

    def _epoch_batches(self, number: int, count: int) -> Iterator[Tensor]:
        """The first `count` batches of pass `number` over the training images, in its own order."""
        loader: Any = self.trainer.train_dataloader
        if not hasattr(loader, "dataset"):  # no DataLoader: it draws its own order
            for images, *_ in itertools.islice(loader, count):
                yield self.trainer.precision_plugin.convert_input(images.to(self.device))
            return
        size, ranks = loader.batch_size, self.trainer.world_size
        key = (self.seed, Stream.UNIVERSAL_ORDER, self.current_epoch, number)
        order = torch.randperm(len(loader.dataset), generator=make_generator("cpu", *key))[: count * size * ranks]
        positions: list[Any] = order[self.global_rank :: ranks].tolist()
        if isinstance(loader.dataset, SeededDataset):  # other augmentations than in the steps of the epoch
            positions = [(self.current_epoch, 1 + number, position) for position in positions]
        subset = Subset(loader.dataset, positions)
        for images, *_ in DataLoader(subset, size, num_workers=loader.num_workers, collate_fn=loader.collate_fn):
            yield self.trainer.precision_plugin.convert_input(images.to(self.device))

    def _skip_nonfinite(self, loss: Tensor) -> bool:
        """Whether all ranks skip the batch; the host waits for the loss."""
        if not self._reduce_mean((~loss.isfinite()).float()):
            return False
        self.skipped += 1
        if self.skipped > self.max_nonfinite_batches:
            self._raise_nonfinite(loss)
        step = self.trainer.fit_loop.total_batch_idx
        log.warning("batch %d skipped: non-finite loss (%d of %d)", step, self.skipped, self.max_nonfinite_batches)
        return True

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients, unless the batch is skipped; a gradient scaler skips the step by itself."""
        if not self._skips or self.trainer.scaler is not None:
            super().backward(loss, *args, **kwargs)
            return
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if isinstance(self.trainer.strategy, DDPStrategy) and any(value.grad is not None for value in weights):
            # Only the last backward of a step averages accumulated gradients over processes.
            (0 * torch.stack([value.sum() for value in weights]).sum()).backward()

    def on_after_backward(self) -> None:
        """End the run in all processes if the loss of one is not finite.

        The device works on the backward while the host waits for the loss.
        """
        if not self.max_nonfinite_batches and self._reduce_mean((~self._loss.isfinite()).float()):
            self.skipped += 1
            self._raise_nonfinite(self._loss)

    def _raise_nonfinite(self, loss: Tensor) -> NoReturn:
        problem = "is not finite in another process" if loss.isfinite() else f"is {float(loss):g}"
        raise NonFiniteLoss(
            f"batch {self.trainer.fit_loop.total_batch_idx}: the loss {problem}: lower optim.lr, or skip such"
            f" batches with max_nonfinite_batches={self.skipped}"
        )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        images, labels, _ = batch
        # Batches, not optimizer steps: accumulated batches have their own draws.
        step, rank = self.trainer.fit_loop.total_batch_idx, self.global_rank
        images, targets = self.mixup(images, labels, self.vit.model.num_classes, (self.seed, Stream.MIXUP, step, rank))
        generator = make_generator(self.device, self.seed, Stream.TRAINING, step, rank)
        seed_torch(self.seed, Stream.LAYERS, step, rank)  # for dropout and drop path
        with self.vit.compiled():
            loss, metrics = self.method.loss(self.vit, images, targets, generator)
        self._loss = loss.detach()
        self._skips = bool(self.max_nonfinite_batches) and self._skip_nonfinite(self._loss)
        if self._skips:
            return {"loss": loss}
        self.log("train/loss", self._loss, prog_bar=True)
        for name, value in metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in ("influence", "converged"))
        # The highest: with layer decay that of the head.
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return {"loss": loss, "metrics": metrics}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        counts = labels != PAD_LABEL
        logits = self.vit(images)
        self.val_loss(F.cross_entropy(logits[counts], labels[counts], reduction="none"))
        self.val_top1(logits, labels)
        self.log("val/loss", self.val_loss)
        self.log("val/top1", self.val_top1, prog_bar=True)
        if self.attack is None:
            return
        # The same images and draws for any number of processes: process r has every n-th image from r on.
        loader: Any = self.trainer.val_dataloaders
        size, ranks = loader.batch_size, self.trainer.world_size
        num_attacked = size * self.val_attack_batches
        if batch_idx * size * ranks < num_attacked:
            positions = [(batch_idx * size + i) * ranks + self.global_rank for i in range(len(images))]
            generators = [make_generator(self.device, self.seed, Stream.VALIDATION, position) for position in positions]
            adversarial = self.attack(self.vit, images, labels.clamp_min(0), generators)
            attacked = counts & (torch.tensor(positions, device=self.device) < num_attacked)
            self.val_adv_top1(self.vit(adversarial), labels.where(attacked, PAD_LABEL))
            self.log("val/adv_top1", self.val_adv_top1, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = checkpoint["skipped"]

    def on_train_start(self) -> None:
        # A checkpoint holds the learning rate in the schedule of its own run, which may have been shorter.
        scheduler: Any = self.lr_schedulers()
        for group, lr, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = lr * factor(scheduler.last_epoch)

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
    """Learning rate as a fraction of its peak: linear from 1/(warmup + 1), then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
