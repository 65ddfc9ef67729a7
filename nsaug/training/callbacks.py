"""Lightning callbacks: validation at the end, unreadable images, noise images and monitor, history, progress."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid, save_image

from nsaug.data import ImageDataModule
from nsaug.methods import NoiseAugmentation
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.training.fsdp import gathered
from nsaug.training.lightning_module import Finetuner
from nsaug.utils.rng import Stream, make_generator
from nsaug.utils.text import LINE_SECONDS, format_duration

log = logging.getLogger(__name__)


class ValidateAtEnd(L.Callback):
    """Validate after the last step of training, also where `max_steps` or `val_check_interval` puts it elsewhere."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (trainer.is_last_batch and last_epoch):
            trainer.should_stop = True  # Lightning validates before it stops


class UnreadableImages(L.Callback):
    """Warn of unreadable images after a pass over them, and end the run, in all processes, if they are too many.

    Args:
        interval: number of batches between checks within an epoch.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.interval == 0:
            _data(trainer).check_unreadable()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _data(trainer).check_unreadable("train")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _data(trainer).check_unreadable("val")


def _data(trainer: L.Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


class NoiseImageLogger(L.Callback):
    """Show validation images, their noise and noisy images: in W&B and TensorBoard at validation, finally in noise.png.

    Args:
        folder: where noise.png is written.
        num_images: number of validation images.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder = folder
        self.num_images = num_images

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        with gathered(module):
            self._log(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        with gathered(module):
            self._save(trainer, module)

    @rank_zero_only
    def _log(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
        grid = self._make_grid(trainer, module) if loggers else None
        for logger in loggers if grid is not None else []:
            if isinstance(logger, WandbLogger):
                caption = "images, their noise, noisy images (the part of the noise that pixels can show)"
                logger.log_image("noise", [grid], caption=[caption])
            else:
                logger.experiment.add_image("noise", grid, trainer.global_step)

    @rank_zero_only
    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (grid := self._make_grid(trainer, module)) is not None:
            save_image(grid, self.folder / "noise.png")

    def _make_grid(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor | None:
        """Three rows of images, (3, H, W); None if the method has no noise or there are no validation images."""
        assert isinstance(module, Finetuner)
        method, loader = module.method, trainer.val_dataloaders
        if not isinstance(method, NoiseAugmentation) or not loader:
            return None
        val_set = loader.dataset
        images = torch.stack([val_set[i][0] for i in range(min(self.num_images, len(val_set)))])
        images = trainer.precision_plugin.convert_input(images.to(module.device))
        with torch.no_grad():
            generator = make_generator(module.device, module.seed, Stream.NOISE_IMAGES)
            noise = method.noise(module.vit, images, generator=generator).noise
        change = to_pixels(module.vit, noise)
        if change is None:
            return None
        change = change.expand_as(images)
        scaled = 0.5 + 0.5 * change / change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        grid = make_grid(torch.cat([images, scaled, (images + change).clamp(0, 1)]), nrow=len(images), padding=1)
        factor = max(1, 64 // images.shape[-1])  # enlarge small images, pixel by pixel
        return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2).cpu()


class NoiseMonitor(L.Callback):
    """Warn once if less than half of the images get noise whose influence is below eps.

    The fraction is summed on the device and read every `window` batches: reading it in every step would make the host
    wait for the device.

    Args:
        window: number of batches that are averaged.
    """

    def __init__(self, window: int = 50) -> None:
        self.window = window
        self._sum: Tensor | None = None
        self._count = 0
        self._warned = False

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = outputs.get("metrics", {}) if isinstance(outputs, dict) else {}
        if self._warned or "converged" not in metrics:
            return
        converged = metrics["converged"].detach().float().mean()
        self._sum = converged if self._sum is None else self._sum + converged
        self._count += 1
        if self._count == self.window:
            self._check(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._warned and self._count:
            self._check(module)

    def _check(self, module: L.LightningModule) -> None:
        assert self._sum is not None
        fraction = float(self._sum) / self._count
        self._sum, self._count = None, 0
        if fraction < 0.5:
            self._warned = True
            self._warn(fraction, module)

    @rank_zero_only
    def _warn(self, fraction: float, module: L.LightningModule) -> None:
        advice = _noise_advice(module)
        log.warning("only %.0f %% of the images have noise below eps%s", 100 * fraction, advice and f": {advice}")


def _noise_advice(module: L.LightningModule) -> str:
    """What the noise source of the method recommends if its noise stays above eps; empty if it recommends nothing."""
    return str(getattr(getattr(module.method, "noise", None), "advice", ""))


class History(L.Callback):
    """Collects the metrics of every epoch.

    Attributes:
        rows: for each epoch its number, the number of steps so far, the mean of every training metric over the steps,
            and the validation metrics if it was validated.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._val: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._sums, self._count, self._val = {}, 0, {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        if "metrics" not in outputs:  # skipped
            return
        self._count += 1
        for name, value in trainer.callback_metrics.items():
            if name.startswith("train/"):
                self._sums[name] = self._sums.get(name, 0) + value.detach()  # on the device: no step waits for it

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics.items()
        self._val = {name: float(value) for name, value in metrics if name.startswith("val/")}

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step} | means | self._val)


class Progress(RichProgressBar):
    """Lightning's rich progress bar without the version number."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {
            name.removeprefix("train/"): value
            for name, value in super().get_metrics(trainer, module).items()
            if name != "v_num"
        }


class ProgressLines(ProgressBar):
    """A line of progress now and then, with the time left, for files and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._start = (0.0, 0)
        self._last = 0.0

    def disable(self) -> None:
        """Lightning calls it in all processes but the first."""
        self._last = math.inf

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start = time.monotonic(), trainer.global_step
        self._last = max(self._last, self._start[0])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        now = time.monotonic()
        if now < self._last + LINE_SECONDS:
            return
        self._last = now
        start, first_step = self._start
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (now - start) * (total - step) / max(1, step - first_step)
        metrics = trainer.callback_metrics
        values = [f"loss {float(metrics['train/loss']):.3g}"] if "train/loss" in metrics else []
        if "val/top1" in metrics:
            values.append(f"val top-1 {100 * float(metrics['val/top1']):.1f} %")
        log.info("step %d of %d: %s; about %s left", step, total, ", ".join(values), format_duration(left))

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        now = time.monotonic()
        if now >= self._last + LINE_SECONDS:
            self._last = now
            log.info("validation: batch %d of %d", batch_idx + 1, trainer.num_val_batches[0])
