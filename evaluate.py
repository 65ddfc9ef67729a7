"""Judges checkpoints or timm models. `python evaluate.py --help` says how; conf/evaluate.yaml holds every choice."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nsaug.config import build, check, check_value, entry_point
from nsaug.settings import NsaugError, first_line

if TYPE_CHECKING:
    from nsaug.data import ImageData
    from nsaug.evaluation import Subject
    from nsaug.vit import ViT

log = logging.getLogger("nsaug.evaluate")

KNOWN = {"data", "model", "suite", "checkpoint", "seed", "batch_size", "device"}


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Every model on every benchmark of the suite: rows on disk, a table on the terminal, a plot."""
    check_settings(cfg)

    import pandas as pd
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from nsaug.evaluation import find_subjects, plot, terminal_table, write
    from nsaug.evaluation.benchmark import subset
    from nsaug.evaluation.table import COLUMNS

    folder = Path(HydraConfig.get().runtime.output_dir)
    device = torch.device(cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    benchmarks = {name: build(entry) for name, entry in cfg.suite.benchmarks.items()}
    given = list(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else cfg.checkpoint
    subjects = find_subjects(given, cfg.model.get("name"))
    open_data = data_opener(cfg)
    for subject in subjects:  # all that can be missing is missed before the first is judged
        open_data(subject)
        if "name" not in cfg.model:
            subject.model()

    rows: list[dict[str, Any]] = []
    with Progress(transient=True) as progress:
        total = progress.add_task("evaluating", total=len(subjects) * len(benchmarks))
        for subject in subjects:
            data = open_data(subject)
            vit = open_model(cfg, subject, data).to(device)
            data.prepare_for(vit.data_config)
            if averaged := subject.record.get("settings", {}).get("ema"):
                log.info("%s: the moving average of its weights (ema=%g) is judged", subject.checkpoint, averaged)
            assert data.test_set is not None
            data.test_set = subset(data.test_set, cfg.suite.max_images, cfg.seed)
            loader = data.test_dataloader()
            for name, benchmark in benchmarks.items():
                task = progress.add_task(f"{subject.name} {subject.columns['seed']}: {name}", total=len(loader))
                advance = _advancing(progress, task)
                found = benchmark.run(name, vit, loader, device, cfg.seed, advance)
                rows += [subject.columns | row for row in found]
                write(pd.DataFrame(rows, columns=COLUMNS), folder)
                progress.remove_task(task)
                progress.advance(total)
    table = pd.DataFrame(rows, columns=COLUMNS)
    plot(table, folder / "results.png")
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width to respect
    console.print(terminal_table(table))
    log.info("results.csv, results.json and results.png: %s", folder)


def _advancing(progress: Any, task: Any) -> Callable[[], None]:
    return lambda: progress.advance(task)


def check_settings(cfg: DictConfig) -> None:
    """All that can be said of a configuration without touching data or weights."""
    import torch

    from nsaug.settings import Count, PositiveCount

    check(cfg, KNOWN)
    check_value("seed", cfg.seed, Count)
    check_value("batch_size", cfg.batch_size, PositiveCount | None)
    check_value("suite.max_images", cfg.suite.max_images, PositiveCount | None)
    if cfg.device != "auto":
        try:
            torch.empty(0, device=cfg.device)
        except (RuntimeError, AssertionError) as error:
            raise NsaugError(
                f"device={cfg.device} cannot be used ({first_line(error)}): type device=cpu or device=auto"
            ) from error


def data_opener(cfg: DictConfig) -> "Callable[[Subject], ImageData]":
    """A function from a model to the data it is judged on: those of `data=`, else those it was trained on."""
    opened: dict[str, ImageData] = {}

    def open_data(subject: "Subject") -> "ImageData":
        node = OmegaConf.to_container(cfg.data, resolve=True) or subject.record.get("data")
        if not node:
            raise NsaugError(f"{subject.checkpoint or subject.name} does not say what it was trained on: add data=...")
        assert isinstance(node, dict)
        if cfg.batch_size:
            node["batch_size"] = cfg.batch_size
        key = json.dumps(node, sort_keys=True)
        if key not in opened:
            opened[key] = build(OmegaConf.create(node))
            opened[key].setup("test")
        return opened[key]

    return open_data


def open_model(cfg: DictConfig, subject: "Subject", data: "ImageData") -> "ViT":
    """Builds a model and makes sure that its classes are those of the data."""
    from nsaug.vit import build_vit

    told = "name" in cfg.model
    vit = build(cfg.model, checkpoint=subject.checkpoint) if told else build_vit(**subject.model())
    if vit.model.num_classes != data.num_classes:
        raise NsaugError(
            f"{subject.checkpoint or subject.name} knows {vit.model.num_classes} classes, the data have"
            f" {data.num_classes}: finetune it on them first (python train.py), or name its own data with data=..."
        )
    known = subject.record.get("class_names", data.class_names)
    if known != data.class_names:
        raise NsaugError(
            f"{subject.checkpoint} was trained on other classes ({known[:3]} ...) than {data.class_names[:3]} ..."
        )
    return vit


if __name__ == "__main__":
    main()
