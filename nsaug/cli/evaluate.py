"""Judges checkpoints or timm models. `python evaluate.py --help` says how; conf/evaluate.yaml holds every choice."""

import datetime
import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nsaug.cli.app import entry_point, instantiate, validate_config, validate_value
from nsaug.utils.errors import UserError, first_line

if TYPE_CHECKING:
    from nsaug.data import TestDataset
    from nsaug.evaluation import EvalModel, NamedBenchmark, Subset
    from nsaug.models.noisy_vit import NoisyViT

log = logging.getLogger("nsaug.evaluate")

KNOWN = {"data", "model", "suite", "checkpoint", "seed", "batch_size", "device", "store", "tracking", "split"}
SUITE = {
    "benchmarks", "score", "corruption_error", "max_images", "image_list", "strict",
    "eps", "eps_autoattack", "eps_l2", "std", "severities", "images", "noises", "layer", "root", "imagenet",
}  # fmt: skip


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Every model on every benchmark of the suite: results on disk as they come, then tables, plots and a report."""
    check_settings(cfg)

    import pandas as pd
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from nsaug.evaluation import (
        Analysis,
        Benchmark,
        NamedBenchmark,
        NoiseAnalysis,
        NoiseTransfer,
        ResultCache,
        Subset,
        find_models,
        run_suite,
    )
    from nsaug.evaluation.reporting.aggregate import COLUMNS, append, grouped, rows_across, rows_of
    from nsaug.evaluation.reporting.formatting import caption, remark_lines, terminal_tables
    from nsaug.evaluation.reporting.report import write_report

    folder = Path(HydraConfig.get().runtime.output_dir)
    device = torch.device(cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    entries = [NamedBenchmark(str(name), instantiate(node)) for name, node in cfg.suite.benchmarks.items()]
    for entry in entries:
        if not isinstance(entry.benchmark, Benchmark | Analysis):
            raise UserError(f"suite.benchmarks.{entry.name}: set its _target_ to nsaug.evaluation.Benchmark")
        sources = [other.name for other in entries if isinstance(other.benchmark, NoiseAnalysis)]
        if isinstance(entry.benchmark, NoiseTransfer) and entry.benchmark.of not in sources:
            raise UserError(
                f"suite.benchmarks.{entry.name}.of={entry.benchmark.of}: it has to be one of the suite's"
                f" analyses of noise, of which there are: {', '.join(sources) or 'none'}"
            )
    score = instantiate(cfg.suite.score) if cfg.suite.get("score") is not None else None
    if score:
        score.check(entry.name for entry in entries)
    selection = Subset(seed=cfg.seed, max_images=cfg.suite.max_images, image_list=cfg.suite.get("image_list"))
    absent = without_data(entries)
    if absent and cfg.suite.get("strict"):
        raise UserError(f"{'; '.join(absent)} (suite.strict=false goes on without)")
    for reason, names in absent.items():
        log.warning(
            "not judged: %s: %s", names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", reason
        )
    entries = [entry for entry in entries if not any(entry.name in names for names in absent.values())]
    if not entries:
        raise UserError(f"nothing is left to judge: {'; '.join(absent)}")
    errors = instantiate(cfg.suite.corruption_error) if cfg.suite.get("corruption_error") is not None else None
    given = list(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else cfg.checkpoint
    subjects = find_models(given, cfg.model.get("name"))
    open_data = data_opener(cfg)
    work = 0
    for subject in subjects:  # all that can be missing is missed before the first is judged
        data = open_data(subject)
        if errors:
            errors.check(data)
        check_data(entries, data, subject)
        work += sum(entry.benchmark.work(len(selected(entry, data, selection))) for entry in entries)
        if not by_model_group(cfg, subject):
            subject.model()

    def opened(subject: "EvalModel") -> "tuple[NoisyViT, TestDataset]":
        data = open_data(subject)
        vit = open_model(cfg, subject, data).to(device)
        data.configure(vit.data_config)
        if averaged := subject.record.get("settings", {}).get("ema"):
            log.info("%s: the moving average of its weights (ema=%g) is judged", subject.label, averaged)
        return vit, data

    if len(subjects) == 1:  # a mistake of one among many costs its own results alone
        only = opened(subjects[0])
    outcomes = []
    rows: list[dict[str, Any]] = []
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=work)

        def advance(title: str, work: int) -> None:
            progress.update(task, description=title, advance=work)

        for outcome in run_suite(
            subjects,
            entries,
            opened if len(subjects) > 1 else lambda _: only,
            ResultCache(Path(cfg.store)),
            selection,
            advance,
        ):
            outcomes.append(outcome)
            found = rows_of(outcome)
            append(pd.DataFrame(found, columns=COLUMNS), folder / "results.csv", new=not rows)
            rows += found
    failed = sum(outcome.result is None for outcome in outcomes)
    if failed < len(outcomes):
        table = pd.DataFrame(rows + rows_across(outcomes, score, errors), columns=COLUMNS)
        suite = HydraConfig.get().runtime.choices["suite"]
        class_names = open_data(subjects[0]).class_names
        missing = [f"not judged: {', '.join(names)}: {reason}" for reason, names in absent.items()]
        write_report(table, outcomes, score, class_names, facts(cfg, device), folder, missing)
        instantiate(cfg.tracking).publish(folder, f"{suite} of {len(subjects)}", table, outcomes)
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # a file or a pipe has no width to respect
        groups = grouped(table)
        console.print(caption(table, groups), highlight=False, markup=False)
        for table_of in terminal_tables(groups):
            console.print(table_of)
        for line in [*remark_lines(table), *missing]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        log.info("report.html, results.csv, .json, .md and .png, groups.csv, comparisons.csv: %s", folder)
    if failed:
        raise UserError(
            f"{failed} of {len(outcomes)} benchmarks failed (above); what was judged is kept in {cfg.store}"
        )


def without_data(entries: "list[NamedBenchmark]") -> dict[str, list[str]]:
    """Finds the test images of benchmarks that have data of their own; why some are not there, and whose they are."""
    from nsaug.data import MissingData

    absent: dict[str, list[str]] = {}
    for entry in entries:
        try:
            if entry.benchmark.data is not None:
                entry.benchmark.data.setup("test")
        except MissingData as error:
            absent.setdefault(str(error), []).append(entry.name)
    return absent


def check_data(entries: "list[NamedBenchmark]", data: "TestDataset", subject: "EvalModel") -> None:
    """Refuses benchmarks that a model's classes cannot answer."""
    for entry in entries:
        name, other = entry.name, entry.benchmark.data or data
        if getattr(entry.benchmark, "attack", None) and other.images.has_label_sets:
            raise UserError(
                f"suite.benchmarks.{name}: an attack needs one label for each image, these have sets of them"
            )
        if other.class_names != data.class_names:
            raise UserError(
                f"suite.benchmarks.{name} is of {other.num_classes:,} classes such as {other.class_names[0]},"
                f" {subject.label} knows {data.num_classes:,} such as {data.class_names[0]}: choose another suite, or"
                f" leave it out with '~suite.benchmarks.{name}'"
            )


def selected(entry: "NamedBenchmark", data: "TestDataset", selection: "Subset") -> Any:
    """The images that an entry judges."""
    other = entry.benchmark.data
    return selection.of((other or data).images, entry.benchmark.class_subset(data), listed=other is None)[0]


def facts(cfg: DictConfig, device: Any) -> dict[str, str]:
    """What was evaluated, with what, and when, for the report's head."""
    import lightning
    import timm
    import torch

    hydra = HydraConfig.get()
    return {
        "suite": hydra.runtime.choices["suite"],
        "command": "python evaluate.py " + " ".join(hydra.overrides.task),
        "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "device": str(device),
        "versions": f"nsaug {version('nsaug')}, torch {torch.__version__}, timm {timm.__version__}, "
        f"lightning {lightning.__version__}",
    }


def check_settings(cfg: DictConfig) -> None:
    """All that can be said of a configuration without touching data or weights."""
    from typing import Literal

    import torch

    from nsaug.utils.types import NonNegativeInt, PositiveInt

    validate_config(cfg, KNOWN)
    validate_value(
        "checkpoint",
        OmegaConf.to_container(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else cfg.checkpoint,
        str | list[str] | None,
    )
    if unknown := set(map(str, cfg.suite)) - SUITE:
        raise UserError(f"suite.{min(unknown)}: no such setting; choose among {', '.join(sorted(SUITE))}")
    for key in ("score", "corruption_error"):
        if cfg.suite.get(key) is not None and "_target_" not in cfg.suite[key]:
            raise UserError(f"suite.{key} has no _target_: start the suite from one that has, or set suite.{key}=null")
    if cfg.model.get("compile") or cfg.model.get("grad_checkpointing"):
        raise UserError("model.compile and model.grad_checkpointing are for training: leave them out")
    validate_value("seed", cfg.seed, NonNegativeInt)
    validate_value("split", cfg.split, Literal["test", "val"])
    validate_value("batch_size", cfg.batch_size, PositiveInt | None)
    validate_value("store", cfg.store, str)
    validate_value("suite.max_images", cfg.suite.max_images, PositiveInt | None)
    validate_value("suite.image_list", cfg.suite.get("image_list"), str | None)
    validate_value("suite.strict", cfg.suite.get("strict", False), bool)
    if cfg.device != "auto":
        try:
            torch.empty(0, device=cfg.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device={cfg.device} cannot be used ({first_line(error)}): type device=cpu or device=auto"
            ) from error


def data_opener(cfg: DictConfig) -> "Callable[[EvalModel], TestDataset]":
    """A function from a model to the data it is judged on: those of `data=`, else those it was trained on."""
    from nsaug.data.datamodule import as_test_dataset

    opened: dict[str, TestDataset] = {}

    def open_data(subject: "EvalModel") -> "TestDataset":
        node = OmegaConf.to_container(cfg.data, resolve=True) or subject.record.get("data")
        if not node:
            raise UserError(f"{subject.checkpoint or subject.name} does not say what it was trained on: add data=...")
        assert isinstance(node, dict)
        if cfg.batch_size:
            node["batch_size"] = cfg.batch_size
        key = json.dumps(node, sort_keys=True)
        if key not in opened:
            opened[key] = as_test_dataset(instantiate(OmegaConf.create(node)), split=cfg.split)
            opened[key].setup("test")
        return opened[key]

    return open_data


def by_model_group(cfg: DictConfig, subject: "EvalModel") -> bool:
    """Whether `model=` says how a subject is built: what brings a config.json, or is a timm name, says so itself."""
    return (
        cfg.model.get("name") is not None
        and subject.config is None
        and (subject.checkpoint is not None or subject.name == cfg.model.name)
    )


def open_model(cfg: DictConfig, subject: "EvalModel", data: "TestDataset") -> "NoisyViT":
    """Builds a model and makes sure that its classes are those of the data."""
    from nsaug.models.factory import build_vit

    told = by_model_group(cfg, subject)
    vit = instantiate(cfg.model, checkpoint=subject.checkpoint) if told else build_vit(**subject.model())
    if vit.model.num_classes != data.num_classes:
        raise UserError(
            f"{subject.checkpoint or subject.name} knows {vit.model.num_classes} classes, the data have"
            f" {data.num_classes}: finetune it on them first (python train.py), or name its own data with data=..."
        )
    known = subject.record.get("class_names", data.class_names)
    if known != data.class_names:
        raise UserError(
            f"{subject.checkpoint} was trained on other classes ({known[:3]} ...) than {data.class_names[:3]} ..."
        )
    return vit


if __name__ == "__main__":
    main()
