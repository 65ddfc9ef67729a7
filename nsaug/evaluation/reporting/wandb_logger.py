"""Send the results of an evaluation to Weights & Biases."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import wandb

from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.reporting.aggregate import varying_columns
from nsaug.evaluation.reporting.formatting import result_keys
from nsaug.evaluation.reporting.settings import setting_columns
from nsaug.evaluation.reporting.summaries import group_by_model
from nsaug.evaluation.reporting.text import printable_results
from nsaug.evaluation.results import BenchmarkResult
from nsaug.utils.errors import first_line
from nsaug.utils.text import run_title
from nsaug.utils.types import validated_dataclass
from nsaug.utils.wandb_account import has_api_key

log = logging.getLogger(__name__)


@validated_dataclass
class EvaluationLogger:
    """Where to send results in W&B; the files in the output folder are written in any case."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if an API key is stored, otherwise off."""
    log_to: Literal["training_run", "new_run"] = "training_run"
    """training_run: the online runs that trained the checkpoints; a new run for every other model."""
    project: str = "nsaug"
    entity: str | None = None
    group: str | None = None
    """Group of new runs; null: the name of the folder that holds the evaluated runs."""

    def publish(self, folder: Path, name: str, rows: pd.DataFrame, results: list[BenchmarkResult]) -> None:
        """Send table, summary metrics and sample images of every model to its run.

        Report and results.png are sent to the same run, of several models to a new run for the comparison.

        Args:
            folder: output folder of the evaluation, with report.html and results.png.
            name: name of the run for the comparison.
            rows: table from `aggregate.tabulate`.
            results: the results in that table; failures are ignored.
        """
        if self.wandb == "off" or (self.wandb == "auto" and not has_api_key()):
            return
        groups = group_by_model([result for result in printable_results(results) if result.output is not None])
        models = [model for model, _ in groups]
        try:
            for model, own in groups:
                own_rows = _rows_of(rows, model)
                content = _tables_and_samples(own_rows, own) | (_report(folder) if len(groups) == 1 else {})
                self._send(self._target(model, rows), folder, content, _summary(own_rows))
            if len(groups) > 1:
                target = self._new_run(models) | {"name": name, "job_type": "comparison"}
                content = _tables_and_samples(rows, [result for _, own in groups for result in own])
                self._send(target, folder, content | _report(folder), {})
        except Exception as error:
            log.warning("the evaluation could not be sent to W&B (%s); it is in %s", first_line(error), folder)

    def _target(self, model: EvalModel, rows: pd.DataFrame) -> dict[str, Any]:
        """Arguments of `wandb.init` for the run of a model: the run that trained it, if it is online, or a new one."""
        run = model.metadata.get("wandb")
        if run and run["online"] and self.wandb != "offline" and self.log_to == "training_run":
            return {key: run[key] for key in ("id", "project", "entity")} | {"resume": "must"}
        settings = setting_columns(model, varying_columns(rows))
        title = run_title(model.metadata.get("name", model.name), settings, model.metadata.get("seed"))
        return self._new_run([model]) | {"name": title, "job_type": "evaluation", "config": run_config(model)}

    def _new_run(self, models: list[EvalModel]) -> dict[str, Any]:
        mode = "offline" if self.wandb == "offline" else "online"
        group = self.group or _sweep_folder(models)
        return {"project": self.project, "entity": self.entity, "mode": mode, "group": group}

    def _send(self, target: dict[str, Any], folder: Path, content: dict[str, Any], summary: dict[str, float]) -> None:
        settings = wandb.Settings(silent=True, console="off")
        with wandb.init(dir=str(folder), settings=settings, reinit="finish_previous", **target) as run:
            run.log(content)
            run.summary.update(summary)
            if run.url:
                log.info("W&B: %s", run.url)


def run_config(model: EvalModel) -> dict[str, Any]:
    """The settings that its training run recorded under the same keys, and the columns of result tables."""
    columns = {"name": model.name, "method_name": model.metadata.get("method"), "seed": model.metadata.get("seed")}
    columns |= setting_columns(model, ())
    return model.metadata.get("settings", {}) | {key: value for key, value in columns.items() if value is not None}


def _sweep_folder(models: list[EvalModel]) -> str | None:
    """Name of the folder that holds all evaluated runs, as training names its groups; None if there is none."""
    parents = {Path(model.checkpoint).parent.parent.name for model in models if model.checkpoint}
    return parents.pop() or None if len(parents) == 1 else None


def _rows_of(rows: pd.DataFrame, model: EvalModel) -> pd.DataFrame:
    same = rows["checkpoint"].isna() if model.checkpoint is None else rows["checkpoint"] == model.checkpoint
    return rows[same & (rows["name"] == model.name)]


def _summary(rows: pd.DataFrame) -> dict[str, float]:
    """Every number of one model, such as `test/clean/top1`."""
    return {
        f"test/{key.heading}/{row['metric']}": row["value"]
        for key in result_keys(rows)
        for row in key.select(rows).to_dict("records")
    }


def _tables_and_samples(rows: pd.DataFrame, results: list[BenchmarkResult]) -> dict[str, Any]:
    samples = [wandb.Image(image, caption=caption) for image, caption in _samples(results)]
    return {"test/table": _to_table(rows), "test/samples": samples}


def _report(folder: Path) -> dict[str, Any]:
    return {
        "test/overview": wandb.Image(str(folder / "results.png")),
        "test/report": wandb.Html((folder / "report.html").read_text()),
    }


def _to_table(rows: pd.DataFrame) -> wandb.Table:
    columns = rows.astype({"checkpoint": str, "strength": float})
    return wandb.Table(dataframe=columns, allow_mixed_types=True)


def _samples(results: list[BenchmarkResult]) -> list[tuple[np.ndarray, str]]:
    """Sample images of every benchmark and strength, side by side, with a caption."""
    return [
        (np.concatenate(list(result.per_image.sample_images), axis=1), f"{result.model.label}: {result.name}")
        for result in results
        if result.per_image is not None and len(result.per_image.sample_images)
    ]
