"""Lightning callbacks: noise images, a monitor of the noise, the progress bar."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid, save_image

from nsaug.methods import NoiseAugmentation
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.training.lightning_module import Finetuner
from nsaug.utils.rng import Stream, make_generator

log = logging.getLogger(__name__)


class NoiseImageLogger(L.Callback):
    """Validation images, their noise and the noisy images, to W&B at each validation and to noise.png at the end."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.images = images

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and (picture := self._draw(trainer, module)) is not None:
                caption = "images, their noise, images with it (what a pixel can show of it)"
                logger.log_image("noise", [picture], caption=[caption])

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (picture := self._draw(trainer, module)) is not None:
            save_image(picture, self.folder / "noise.png")

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor | None:
        """A grid of three rows, or None where there is no noise to show."""
        assert isinstance(module, Finetuner)
        method, loader = module.method, trainer.val_dataloaders
        if not isinstance(method, NoiseAugmentation) or not loader:
            return None
        val_set = loader.dataset
        images = torch.stack([val_set[i][0] for i in range(min(self.images, len(val_set)))])
        images = trainer.precision_plugin.convert_input(images.to(module.device))
        with torch.no_grad():
            draws = make_generator(module.device, module.seed, Stream.NOISE_IMAGES)
            noise = method.noise(module.vit, images, generator=draws).noise
        change = to_pixels(module.vit, noise)
        if change is None:
            return None
        change = change.expand_as(images)
        shown = 0.5 + 0.5 * change / change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        grid = make_grid(torch.cat([images, shown, (images + change).clamp(0, 1)]), nrow=len(images), padding=1)
        # Small images are shown larger, pixel by pixel.
        factor = max(1, 64 // images.shape[-1])
        return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2).cpu()


class NoiseMonitor(L.Callback):
    """Says once when the noise of a run is no ε-approximate nullspace noise, or was so before it was refined."""

    def __init__(self, batches: int = 50) -> None:
        self.batches = batches
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if len(self.seen) < self.batches and "train/converged" in trainer.callback_metrics:
            self.seen.append(float(trainer.callback_metrics["train/converged"]))
            if len(self.seen) == self.batches:
                self._say()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if 0 < len(self.seen) < self.batches:
            self._say()

    def _say(self) -> None:
        if sum(self.seen) < 0.5 * len(self.seen):
            log.warning("less than half of the noise is below eps")


class Progress(RichProgressBar):
    """Lightning's rich bar, without its version number."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {
            name.removeprefix("train/"): value
            for name, value in super().get_metrics(trainer, module).items()
            if name != "v_num"
        }
