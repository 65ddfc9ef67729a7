"""A run's record: W&B when there is an account, offline when not, metrics.csv beside the checkpoint."""

import csv
import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
import wandb
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid, save_image

from nsaug.draws import generator
from nsaug.evaluation import Outcome
from nsaug.evaluation.views import places
from nsaug.finetuner import Finetuner
from nsaug.methods import Nullspace
from nsaug.nullspace.pixels import to_pixels
from nsaug.settings import Count, first_line, settings

log = logging.getLogger(__name__)

PICTURE = 2
"""First part of the key of the draws for pictures; see TRAINING and VALIDATION in `finetuner`."""


@settings
class Tracking:
    """Where a run's metrics go."""

    csv: bool = True
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where a key is stored and the server answers, offline otherwise, without asking."""
    project: str = "nsaug"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    pictures: Count = 8
    """How many validation images are shown with their noise; 0 for none."""

    def loggers(
        self,
        folder: Path,
        name: str,
        group: str | None,
        config: dict[str, Any],
        going_on: Path | None = None,
        place: dict[str, Any] | None = None,
    ) -> list[Logger]:
        """The loggers of one run. What they need is made on rank 0 alone.

        Args:
            folder: the run's own; everything local is written below it.
            name: of the run.
            group: of the runs it belongs to, where `self.group` names none.
            config: everything the run was told.
            going_on: the checkpoint that the run is resumed from, if it is.
            place: `whereabouts` of the run when it started, if it did before.
        """
        loggers: list[Logger] = [_csv_logger(folder, going_on)] if self.csv else []
        if self.wandb != "off" and is_rank_zero():
            loggers.append(WandbLogger(experiment=self._start(folder, name, self.group or group, config, place)))
        return loggers

    def _start(
        self, folder: Path, name: str, group: str | None, config: dict[str, Any], place: dict[str, Any] | None
    ) -> Any:
        options: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "group": group,
            "name": name,
            "tags": self.tags,
            "dir": str(folder),
            "config": config,
            "settings": wandb.Settings(silent=True, console="off"),
            "reinit": "finish_previous",
        }
        if place is not None:
            options |= {"id": place["id"], "resume": "allow"}
        if self.wandb == "online" or (self.wandb == "auto" and _has_key()):
            try:
                run = wandb.init(mode="online", **options)
                log.info("W&B: %s", run.url)
                return run
            except Exception as error:
                log.warning("W&B cannot be reached (%s): this run is recorded offline", first_line(error))
        return wandb.init(mode="offline", **options)


def _csv_logger(folder: Path, going_on: Path | None) -> CSVLogger:
    """Writes metrics.csv; of a run that goes on from a checkpoint, after what was logged before that."""
    logger, path = CSVLogger(folder, name="", version=""), folder / "metrics.csv"
    if going_on is None or not path.is_file() or not is_rank_zero():
        return logger
    step = torch.load(going_on, map_location="cpu", weights_only=True)["global_step"]
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    writer: Any = logger.experiment  # removes the file
    for row in rows:
        own = {key: value for key, value in row.items() if value and key != "step"}
        writer.log_metrics(own, int(row["step"]))
    writer.save()
    return logger


@settings
class EvaluationTracking:
    """Where an evaluation goes in W&B; its files stay in its folder whatever happens."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where a key is stored, else nowhere."""
    run: Literal["trained", "own"] = "trained"
    """trained: to the runs that trained the checkpoints, where they were online; own: to a run of its own."""
    project: str = "nsaug"
    entity: str | None = None

    def publish(self, folder: Path, name: str, rows: pd.DataFrame, outcomes: list[Outcome]) -> None:
        """Sends table, numbers and sample images, and from a run of its own the report and its picture.

        Args:
            folder: the evaluation's own, with report.html and results.png.
            name: of a run of its own.
            rows: `evaluation.table.tabulate`'s.
            outcomes: where the rows come from.
        """
        if self.wandb == "off" or (self.wandb == "auto" and not _has_key()):
            return
        online = self.wandb != "offline"
        left = [outcome for outcome in outcomes if outcome.result is not None]
        try:
            if online and self.run == "trained":
                for place in _trained(left):
                    own = [outcome for outcome in left if outcome.subject.record.get("wandb") == place]
                    left = [outcome for outcome in left if outcome not in own]
                    self._send({"id": place["id"], "project": place["project"], "entity": place["entity"],
                                "resume": "must"}, folder, rows, own)  # fmt: skip
            if left:
                told = {"project": self.project, "entity": self.entity, "name": name, "job_type": "evaluation"}
                self._send(told | {"mode": "online" if online else "offline"}, folder, rows, left, whole=True)
        except Exception as error:
            log.warning("W&B did not take the evaluation (%s): it is in %s", first_line(error), folder)

    def _send(
        self, told: dict[str, Any], folder: Path, rows: pd.DataFrame, outcomes: list[Outcome], whole: bool = False
    ) -> None:
        own = rows[rows["checkpoint"].isin([outcome.subject.checkpoint for outcome in outcomes])]
        quiet = wandb.Settings(silent=True, console="off")
        with wandb.init(dir=str(folder), settings=quiet, reinit="finish_previous", **told) as run:
            content: dict[str, Any] = {
                "test/table": wandb.Table(dataframe=own.astype({"checkpoint": str, "strength": float})),
                "test/samples": [wandb.Image(pixels, caption=caption) for pixels, caption in _samples(outcomes)],
            }
            if whole:
                content["test/overview"] = wandb.Image(str(folder / "results.png"))
                content["test/report"] = wandb.Html((folder / "report.html").read_text())
            run.log(content)
            if len({outcome.subject.checkpoint for outcome in outcomes}) == 1:
                for place in places(own):
                    for row in place.of(own).to_dict("records"):
                        run.summary[f"test/{place.heading}/{row['metric']}"] = row["value"]
            if run.url:
                log.info("W&B: %s", run.url)


def _trained(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The online runs that trained what was judged, each once."""
    found = [outcome.subject.record.get("wandb") for outcome in outcomes]
    return [place for rank, place in enumerate(found) if place and place["online"] and place not in found[:rank]]


def _samples(outcomes: list[Outcome]) -> list[tuple[np.ndarray, str]]:
    """The kept images of each benchmark's greatest strength, side by side, and what they are."""
    return [
        (np.concatenate(list(outcome.per_image.pictures[-1]), axis=1), f"{outcome.subject.label}: {outcome.entry.name}")
        for outcome in outcomes
        if outcome.per_image is not None
    ]


def whereabouts(loggers: list[Logger]) -> dict[str, Any] | None:
    """Which W&B run records a training, so that its evaluation can be sent there; None without one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            online = run.settings.mode == "online"
            return {"id": run.id, "project": run.project, "entity": run.entity or None, "online": online}
    return None


def is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _has_key() -> bool:
    """Whether an account is stored (WANDB_API_KEY, netrc); asks neither the user nor the server."""
    wandb.setup(wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def finish(loggers: list[Logger], failed: bool) -> None:
    """Closes a run, so that the next one of a multirun is one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))


class Pictures(L.Callback):
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
        if not isinstance(method, Nullspace) or not loader or method.rms.isnan():
            return None
        val_set = loader.dataset
        images = torch.stack([val_set[i][0] for i in range(min(self.images, len(val_set)))])
        images = trainer.precision_plugin.convert_input(images.to(module.device))
        with torch.no_grad():
            draws = generator(module.device, module.seed, PICTURE)
            found = method.noise_for(module.vit, images, module.vit(images), draws)
        change = to_pixels(module.vit, found.noise)
        if change is None:
            return None
        change = change.expand_as(images)
        shown = 0.5 + 0.5 * change / change.abs().amax(dim=(1, 2, 3), keepdim=True)
        grid = make_grid(torch.cat([images, shown, (images + change).clamp(0, 1)]), nrow=len(images), padding=1)
        # Small images are shown larger, pixel by pixel.
        factor = max(1, 64 // images.shape[-1])
        return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2).cpu()


class NoiseWatch(L.Callback):
    """Says once when the noise of a run is no ε-approximate nullspace noise, or was so before it was refined."""

    def __init__(self, batches: int = 50) -> None:
        self.batches = batches
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if len(self.seen) < self.batches and "train/reached" in trainer.callback_metrics:
            metrics = trainer.callback_metrics
            self.seen.append((float(metrics["train/refinement_steps"]), float(metrics["train/reached"])))
            if len(self.seen) == self.batches:
                self._say()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if 0 < len(self.seen) < self.batches:
            self._say()

    def _say(self) -> None:
        if all(steps == 0 for steps, _ in self.seen):
            log.warning("the noise starts below eps: nothing is refined. Raise nullspace.limit or lower nullspace.eps")
        elif all(reached == 0 for _, reached in self.seen):
            log.warning("no noise gets below eps: raise nullspace.steps or nullspace.eps, or lower nullspace.limit")


class Progress(RichProgressBar):
    """Lightning's rich bar, without its version number."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {
            name.removeprefix("train/"): value
            for name, value in super().get_metrics(trainer, module).items()
            if name != "v_num"
        }
