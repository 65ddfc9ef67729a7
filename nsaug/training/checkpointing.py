"""What keeps a run from being lost: checkpoints at moments from which it goes on exactly."""

import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write

log = logging.getLogger(__name__)


LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all; of last.ckpt the one before is kept, too."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            with atomic_write(path) as draft:
                torch.save(checkpoint, draft)
                if path.name == LAST and path.exists():  # at every moment there is a last.ckpt
                    with atomic_write(path.with_name(PREVIOUS)) as copy:
                        shutil.copyfile(path, copy)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            kept = (
                f"the one before is whole: make room and type resume={path.parent}" if path.exists() else "none is kept"
            )
            raise UserError(f"{path} cannot be written ({first_line(error)}); {kept}") from error


def check_disk_space(folder: Path, model: torch.nn.Module) -> None:
    """Finds out before the first step that a run could not keep what it computes.

    Raises:
        UserError: the folder cannot be written, or has less room than two checkpoints take.
    """
    try:
        with atomic_write(folder / ".room") as draft:
            draft.write_bytes(b"room")
        (folder / ".room").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({first_line(error)}): name another, hydra.run.dir=PATH"
        ) from error
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    wanted = 2 * 4 * weights  # of two checkpoints: weights, their average, and the optimiser's two moments
    if free < wanted:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB of room, and checkpoints of this model take {wanted / 1e9:.1f}:"
            " make some, or name another place, hydra.run.dir=PATH"
        )


def find_last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a run's folder that is whole; None where there is none at all.

    Raises:
        UserError: there are some, and all are damaged.
    """
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            if is_valid(folder / name):
                if damaged:  # out of the way, or the next checkpoint's predecessor would be a damaged one
                    os.replace(damaged[0], damaged[0].with_name(DAMAGED))
                    log.warning("%s is damaged: the run goes on from %s, the one before", damaged[0], name)
                return folder / name
            damaged.append(folder / name)
    if damaged:
        raise UserError(f"resume={folder}: {' and '.join(each.name for each in damaged)} are damaged: start anew")
    return None


def is_valid(path: Path) -> bool:
    """Whether every part of a checkpoint is what was written: its checksums hold."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


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
