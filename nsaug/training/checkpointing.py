"""Write checkpoints atomically, at moments from which a run resumes exactly."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from nsaug.models.run_config import CONFIG
from nsaug.training.resume import LAST, PREVIOUS, read_checkpoint
from nsaug.training.stopping import StopSignals
from nsaug.utils.errors import UserError, as_setting, first_line, os_reason
from nsaug.utils.files import atomic_write, is_file

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint completely or not at all; keep the one before last.ckpt as previous.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            with atomic_write(path) as tmp_path:
                with open(tmp_path, "wb") as file:
                    torch.save(checkpoint, file)
                if path.name == LAST and path.exists():  # copied, not moved: there is always a last.ckpt
                    with atomic_write(path.with_name(PREVIOUS)) as copy:
                        shutil.copyfile(path, copy)
        except (OSError, RuntimeError) as error:
            # torch's writer raises a RuntimeError after the OSError of the file.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            advice = (
                f"the one before is intact: free disk space and type python train.py"
                f" {as_setting('resume', path.parent)}"
                if path.exists()
                else "there is none before it: free disk space, or type hydra.run.dir=PATH"
            )
            raise UserError(f"{path} cannot be written ({os_reason(reason)}); {advice}") from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        # Not Lightning's: it executes what is pickled in a path that starts with http.
        return dict(read_checkpoint(Path(path), map_location))


def check_disk_space(folder: Path, model: torch.nn.Module) -> None:
    """Check before the first step that the folder can be written and holds two checkpoints.

    Raises:
        UserError: it cannot be written, or has too little free space.
    """
    try:
        with atomic_write(folder / ".write_test") as tmp_path:
            tmp_path.write_bytes(b"test")
        (folder / ".write_test").unlink(missing_ok=True)  # other ranks do the same
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({first_line(error)}): type hydra.run.dir=PATH") from error
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed = 2 * 4 * weights  # two checkpoints of: weights, their moving average, two moments of the optimizer
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, checkpoints of this model need {needed / 1e9:.1f} GB: free disk"
            " space, or type hydra.run.dir=PATH"
        )


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove temporary files of checkpoints that a killed process did not finish."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        path.unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Write last.ckpt after every epoch, every n optimizer steps, and when a signal stops the run.

    Where validation follows a step, the checkpoint is written after it, so that a resumed run does not skip it. Steps
    between accumulated batches, and the last step of an epoch before its validation, are never saved: a resumed run
    repeats them. In validation a signal stops the run at once.

    Args:
        folder: where last.ckpt is written.
        write_config: writes config.json there; called again if it was removed during training.
        every_n_steps: optimizer steps between checkpoints within an epoch; None for one after each epoch alone.
        signals: those that stop the run.
    """

    def __init__(
        self, folder: Path, write_config: Callable[[], None], every_n_steps: int | None, signals: StopSignals
    ) -> None:
        self.folder = folder
        self.write_config = write_config
        self.every_n_steps = every_n_steps
        self.signals = signals
        self._step = 0
        self._stop = 0
        self._save_after_validation = self._is_saved = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.signals.prepare()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.signals.listen(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        # Only now the loggers have the metrics of the step before.
        if self._stop:
            self.signals.stop(trainer, self._stop)
        if self._is_saved:
            self._is_saved = False
            self._save_metrics(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped:
            return
        self._stop = self.signals.received(trainer)
        is_due = self._stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        if is_due and not trainer.is_last_batch:
            if _validation_follows(trainer, batch_idx):
                self._save_after_validation = True
            else:
                self._save(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if number := self.signals.received(trainer):
            self.signals.stop(trainer, number)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._save_after_validation:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer)
        if self._stop:
            self.signals.stop(trainer, self._stop)

    def _save(self, trainer: L.Trainer) -> None:
        self._save_after_validation = False
        config = self.folder / CONFIG
        if trainer.is_global_zero and not is_file(config):
            log.warning("%s is missing: writing it again", config)
            self.write_config()
        self._save_metrics(trainer)
        trainer.save_checkpoint(self.folder / LAST)
        self._is_saved = True

    def _save_metrics(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a resumed run keeps the metrics up to its checkpoint


def _validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, which is not the last one of its epoch."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    interval: float | None = trainer.val_check_batch
    if interval is None or math.isinf(interval):
        return trainer.should_stop
    index = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return trainer.should_stop or (index + 1) % interval == 0
