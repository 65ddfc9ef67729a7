"""Send the results of an evaluation to Weights & Biases."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import wandb

from nsaug.evaluation.reporting.aggregate import varying_columns
from nsaug.evaluation.reporting.formatting import result_keys
from nsaug.evaluation.reporting.text import printable_results
from nsaug.evaluation.results import BenchmarkResult
from nsaug.utils.errors import first_line
from nsaug.utils.types import validated_dataclass
from nsaug.utils.wandb_account import has_api_key

log = logging.getLogger(__name__)


@validated_dataclass
class EvaluationLogger:
    """Where to send results in W&B; the files in the output folder are written in any case."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if an API key is stored, otherwise off."""
    log_to: Literal["training_run", "new_run"] = "training_run"
    """training_run: the online runs that trained the checkpoints; a new run for all others."""
    project: str = "nsaug"
    entity: str | None = None
    group: str | None = None
    """Group of a new run; null: the name of the folder that holds the evaluated runs."""

    def publish(self, folder: Path, name: str, rows: pd.DataFrame, results: list[BenchmarkResult]) -> None:
        """Send table, summary metrics and sample images; to a new run also the report and results.png.

        Args:
            folder: output folder of the evaluation, with report.html and results.png.
            name: name of a new run.
            rows: table from `aggregate.tabulate`.
            results: the results in that table; failures are ignored.
        """
        if self.wandb == "off" or (self.wandb == "auto" and not has_api_key()):
            return
        online = self.wandb != "offline"
        remaining = [result for result in printable_results(results) if result.output is not None]
        try:
            if online and self.log_to == "training_run":
                for run in _training_runs(remaining):
                    from_run = [result for result in remaining if result.model.metadata.get("wandb") == run]
                    remaining = [result for result in remaining if result not in from_run]
                    target = {key: run[key] for key in ("id", "project", "entity")} | {"resume": "must"}
                    self._send(target, folder, rows, from_run)
            if remaining:
                target = {"project": self.project, "entity": self.entity, "name": name, "job_type": "evaluation"}
                target |= {"mode": "online" if online else "offline", "config": run_config(rows, remaining)}
                target["group"] = self.group or _sweep_folder(remaining)
                self._send(target, folder, rows, remaining, with_report=True)
        except Exception as error:
            log.warning("the evaluation could not be sent to W&B (%s); it is in %s", first_line(error), folder)

    def _send(
        self,
        target: dict[str, Any],
        folder: Path,
        rows: pd.DataFrame,
        results: list[BenchmarkResult],
        with_report: bool = False,
    ) -> None:
        checkpoints = _checkpoints(results)
        rows = _rows_of(rows, results)
        settings = wandb.Settings(silent=True, console="off")
        with wandb.init(dir=str(folder), settings=settings, reinit="finish_previous", **target) as run:
            content: dict[str, Any] = {
                "test/table": _to_table(rows),
                "test/samples": [wandb.Image(image, caption=caption) for image, caption in _samples(results)],
            }
            if with_report:
                content["test/overview"] = wandb.Image(str(folder / "results.png"))
                content["test/report"] = wandb.Html((folder / "report.html").read_text())
            run.log(content)
            if len(checkpoints) == 1:
                for key in result_keys(rows):
                    for row in key.select(rows).to_dict("records"):
                        run.summary[f"test/{key.heading}/{row['metric']}"] = row["value"]
            if run.url:
                log.info("W&B: %s", run.url)


def _checkpoints(results: list[BenchmarkResult]) -> list[str | None]:
    return list(dict.fromkeys(result.model.checkpoint for result in results))


def _rows_of(rows: pd.DataFrame, results: list[BenchmarkResult]) -> pd.DataFrame:
    return rows[rows["checkpoint"].isin(_checkpoints(results))]


def run_config(rows: pd.DataFrame, results: list[BenchmarkResult]) -> dict[str, Any]:
    """Method, ε and the settings that vary: the value that all results have, otherwise the list of values."""
    own = _rows_of(rows, results)
    config = {}
    for column in ("name", "method", "eps", "seed", *varying_columns(rows)):
        values = own[column].dropna().unique().tolist()
        config[column] = values[0] if len(values) == 1 else values or None
    return config


def _sweep_folder(results: list[BenchmarkResult]) -> str | None:
    """Name of the folder that holds all evaluated runs, as training names its groups; None if there is none."""
    parents = {Path(checkpoint).parent.parent.name for checkpoint in _checkpoints(results) if checkpoint}
    return parents.pop() or None if len(parents) == 1 else None


def _to_table(rows: pd.DataFrame) -> wandb.Table:
    columns = rows.astype({"checkpoint": str, "strength": float})
    return wandb.Table(dataframe=columns, allow_mixed_types=True)


def _training_runs(results: list[BenchmarkResult]) -> list[dict[str, Any]]:
    """The distinct online W&B runs that trained the evaluated models."""
    runs: list[dict[str, Any]] = []
    for result in results:
        run = result.model.metadata.get("wandb")
        if run and run["online"] and run not in runs:
            runs.append(run)
    return runs


def _samples(results: list[BenchmarkResult]) -> list[tuple[np.ndarray, str]]:
    """Sample images of every benchmark and strength, side by side, with a caption."""
    return [
        (np.concatenate(list(result.per_image.sample_images), axis=1), f"{result.model.label}: {result.name}")
        for result in results
        if result.per_image is not None and len(result.per_image.sample_images)
    ]
