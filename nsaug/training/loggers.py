"""A run's record: W&B when there is an account, offline when not, metrics.csv beside the checkpoint."""

import csv
import logging
from pathlib import Path
from typing import Any, Literal

import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nsaug.utils.errors import first_line
from nsaug.utils.types import NonNegativeInt, validated_dataclass

log = logging.getLogger(__name__)


@validated_dataclass
class LoggerConfig:
    """Where a run's metrics go."""

    csv: bool = True
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where a key is stored and the server answers, offline otherwise, without asking."""
    project: str = "nsaug"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    pictures: NonNegativeInt = 8
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
            place: `wandb_run_info` of the run when it started, if it did before.
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
        if self.wandb == "online" or (self.wandb == "auto" and _has_api_key()):
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


def wandb_run_info(loggers: list[Logger]) -> dict[str, Any] | None:
    """Which W&B run records a training, so that its evaluation can be sent there; None without one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            online = run.settings.mode == "online"
            return {"id": run.id, "project": run.project, "entity": run.entity or None, "online": online}
    return None


def is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _has_api_key() -> bool:
    """Whether an account is stored (WANDB_API_KEY, netrc); asks neither the user nor the server."""
    wandb.setup(wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def finish(loggers: list[Logger], failed: bool) -> None:
    """Closes a run, so that the next one of a multirun is one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
