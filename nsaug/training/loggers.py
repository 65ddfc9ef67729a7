"""Record a run: metrics.csv in its folder, and W&B, online where an account is stored and offline elsewhere."""

import logging
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nsaug.training.resume import read_checkpoint, read_metrics
from nsaug.utils.errors import first_line
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
                return run
            except Exception as error:
                log.warning("W&B cannot be reached (%s): recording this run offline", first_line(error))
        return wandb.init(mode="offline", **options)


def _csv_logger(folder: Path, resume_from: Path | None) -> CSVLogger:
    """A logger to metrics.csv; a resumed run keeps the rows that were written before its checkpoint."""
    logger, path = CSVLogger(folder, name="", version=""), folder / "metrics.csv"
    if resume_from is None or not path.is_file() or not is_rank_zero():
        return logger
    rows = read_metrics(path, before_step=read_checkpoint(resume_from, mmap=True)["global_step"])
    writer: Any = logger.experiment  # deletes the file
    for row in rows:
        metrics = {key: value for key, value in row.items() if value and key != "step"}
        writer.log_metrics(metrics, int(row["step"]))
    writer.save()
    return logger


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
