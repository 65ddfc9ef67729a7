"""A moving average of the weights (`ema=0.999`)."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nsaug.training.fsdp import FSDP, reshard, shard_like


class MovingAverage(L.Callback):
    """Average the trainable weights over steps; validate the average, and save it as the model of a checkpoint.

    After the first step the average is the weights. A checkpoint has it in `state_dict`, and the weights to resume from
    in `current_model_state`, as those of Lightning's EMAWeightAveraging, which cannot average sharded weights.

    Args:
        decay: of the average per step; the weights count 1 - decay.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: list[Tensor] = []
        self._restored: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if self._restored:
            keys = {id(value): key for key, value in module.state_dict(keep_vars=True).items()}
            self._average = [shard_like(self._restored[keys[id(weights)]], weights) for weights in _trainable(module)]
            self._restored = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = [parameter.detach() for parameter in _trainable(module)]
        if self._average:
            torch._foreach_lerp_(self._average, weights, 1 - self.decay)
        else:
            self._average = [value.clone() for value in weights]

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._swap(module)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._swap(module)

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for average, weights in self._pairs(module):
            weights.copy_(average)

    @torch.no_grad()
    def _swap(self, module: L.LightningModule) -> None:
        reshard(module)
        for average, weights in self._pairs(module):
            kept = average.clone()
            average.copy_(weights)
            weights.copy_(kept)

    def _pairs(self, module: L.LightningModule) -> list[tuple[Tensor, nn.Parameter]]:
        """The averages and their weights; empty before the first step."""
        return list(zip(self._average, _trainable(module), strict=True)) if self._average else []

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        averages = {id(weights): average for average, weights in self._pairs(module)}
        own = module.state_dict(keep_vars=True)
        state = {key: averages.get(id(value), value).detach() for key, value in own.items()}
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        strategy = trainer.strategy
        checkpoint["state_dict"] = strategy.full_state(state) if isinstance(strategy, FSDP) else state

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint["state_dict"]
        trainer.strategy.load_model_state_dict({"state_dict": checkpoint["current_model_state"]})


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
