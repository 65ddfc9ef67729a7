"""What keeps a run from being lost: checkpoints at moments from which it goes on exactly."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from nsaug.checkpoints import LAST


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after each epoch and every so many optimiser steps, and when SIGTERM asks one process to end.

    Never between an epoch's last step and the end of its validation, nor between steps that accumulate: what happened
    there is computed again.

    Args:
        folder: the run's own.
        every: optimiser steps from one to the next; None for epochs alone.
    """

    def __init__(self, folder: Path, every: int | None) -> None:
        self.folder = folder
        self.every = every
        self._step = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped or trainer.is_last_batch:
            return
        ending = trainer.received_sigterm and trainer.world_size == 1  # saving takes all ranks: one cannot decide alone
        if ending or (self.every and trainer.global_step % self.every == 0):
            self._save(trainer)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged before a checkpoint is not logged again after it
        trainer.save_checkpoint(self.folder / LAST)
