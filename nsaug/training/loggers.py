"""Record a run: metrics.csv in its folder, TensorBoard, and W&B, online with an account and offline elsewhere."""

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nsaug.training.resume import read_checkpoint, read_metrics
from nsaug.utils.errors import first_line
from nsaug.utils.files import atomic_write, is_file
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.types import NonNegativeInt, validated_dataclass
from nsaug.utils.wandb_account import has_api_key

log = logging.getLogger(__name__)


@validated_dataclass
class LoggerConfig:
    """Where the metrics of a run are recorded."""

    csv: bool = True
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if a key is stored and the server responds, else offline; never asks."""
    project: str = "nsaug"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    num_images: NonNegativeInt = 8
    """Number of validation images that are shown with their noise; 0: none."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.tensorboard:
            optional_import("tensorboard", "tensorboard")

    def loggers(
        self,
        folder: Path,
        name: str,
        group: str | None,
        config: dict[str, Any],
        resume_from: Path | None = None,
        wandb_run: dict[str, Any] | None = None,
    ) -> list[Logger]:
        """Lightning's loggers of one run; W&B on rank 0 alone.

        Args:
            folder: output folder of the run.
            name: of the run.
            group: of runs that belong together, unless `self.group` is set.
            config: all settings.
            resume_from: the checkpoint of a resumed run.
            wandb_run: `wandb_run_info` of the run that is resumed.
        """
        loggers: list[Logger] = [_csv_logger(folder, resume_from)] if self.csv else []
        if self.tensorboard:
            # Events of a resumed run that were written after its checkpoint are hidden.
            step = read_checkpoint(resume_from, mmap=True)["global_step"] if resume_from else None
            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step))
        if self.wandb != "off" and is_rank_zero():
            run = self._init_wandb(folder, name, self.group or group, config, wandb_run)
            loggers.append(WandbLogger(experiment=run))
        return loggers

    def _init_wandb(
        self, folder: Path, name: str, group: str | None, config: dict[str, Any], wandb_run: dict[str, Any] | None
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
        if wandb_run is not None:
            options |= {"id": wandb_run["id"], "resume": "allow"}
        if self.wandb == "online" or (self.wandb == "auto" and has_api_key()):
            try:
                run = wandb.init(mode="online", **options)
                log.info("W&B: %s", run.url)
                return _with_step_axis(run)
            except Exception as error:
                log.warning("W&B cannot be reached (%s): recording this run offline", first_line(error))
        return _with_step_axis(wandb.init(mode="offline", **options))


def _with_step_axis(run: Any) -> Any:
    """Make optimizer steps the axis of all charts; Lightning does so only for runs that it starts itself."""
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


class MetricsLogger(CSVLogger):
    """Lightning's CSVLogger, but metrics.csv is always replaced as a whole: no fault leaves a part of it.

    Args:
        folder: of metrics.csv.
        rows: those of the run that is resumed.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, str]] = ()) -> None:
        super().__init__(folder, name="", version="")
        self._experiment = _MetricsFile(folder / "metrics.csv", rows)


class _MetricsFile(ExperimentWriter):
    """All rows of metrics.csv."""

    def __init__(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        self.path = path  # Lightning's __init__ would delete the file
        self.metrics = [{key: value for key, value in row.items() if value} for row in rows]
        self._num_saved = 0

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Do nothing: config.json records the settings."""

    def save(self) -> None:
        if not self.metrics or (len(self.metrics) == self._num_saved and is_file(self.path)):
            return
        with atomic_write(self.path) as tmp_path, open(tmp_path, "w", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*self.metrics)))
            writer.writeheader()
            writer.writerows(self.metrics)
        self._num_saved = len(self.metrics)


def _csv_logger(folder: Path, resume_from: Path | None) -> CSVLogger:
    """A logger to metrics.csv; a resumed run keeps the rows that were written before its checkpoint."""
    path = folder / "metrics.csv"
    if resume_from is None or not is_file(path) or not is_rank_zero():
        return MetricsLogger(folder)
    return MetricsLogger(folder, read_metrics(path, read_checkpoint(resume_from, mmap=True)["global_step"]))


def wandb_run_info(loggers: list[Logger]) -> dict[str, Any] | None:
    """The W&B run that records a training, so that its evaluation can be logged there; None without W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            online = run.settings.mode == "online"
            return {"id": run.id, "project": run.project, "entity": run.entity or None, "online": online}
    return None


def is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def finish(loggers: list[Logger], failed: bool) -> None:
    """End the W&B run, so that the next run of a multirun starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
