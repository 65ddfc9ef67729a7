"""Send an evaluation to Weights & Biases."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import wandb

from nsaug.evaluation import BenchmarkResult
from nsaug.evaluation.reporting.formatting import places
from nsaug.training.loggers import _has_api_key
from nsaug.utils.errors import first_line
from nsaug.utils.types import validated_dataclass

log = logging.getLogger(__name__)


@validated_dataclass
class EvaluationLogger:
    """Where an evaluation goes in W&B; its files stay in its folder whatever happens."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where a key is stored, else nowhere."""
    run: Literal["trained", "own"] = "trained"
    """trained: to the runs that trained the checkpoints, where they were online; own: to a run of its own."""
    project: str = "nsaug"
    entity: str | None = None

    def publish(self, folder: Path, name: str, rows: pd.DataFrame, outcomes: list[BenchmarkResult]) -> None:
        """Sends table, numbers and sample images, and from a run of its own the report and its picture.

        Args:
            folder: the evaluation's own, with report.html and results.png.
            name: of a run of its own.
            rows: `evaluation.table.tabulate`'s.
            outcomes: where the rows come from.
        """
        if self.wandb == "off" or (self.wandb == "auto" and not _has_api_key()):
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
        self,
        told: dict[str, Any],
        folder: Path,
        rows: pd.DataFrame,
        outcomes: list[BenchmarkResult],
        whole: bool = False,
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


def _trained(outcomes: list[BenchmarkResult]) -> list[dict[str, Any]]:
    """The online runs that trained what was judged, each once."""
    found = [outcome.subject.record.get("wandb") for outcome in outcomes]
    return [place for rank, place in enumerate(found) if place and place["online"] and place not in found[:rank]]


def _samples(outcomes: list[BenchmarkResult]) -> list[tuple[np.ndarray, str]]:
    """The kept images of each benchmark's greatest strength, side by side, and what they are."""
    return [
        (np.concatenate(list(outcome.per_image.pictures[-1]), axis=1), f"{outcome.subject.label}: {outcome.entry.name}")
        for outcome in outcomes
        if outcome.per_image is not None
    ]
