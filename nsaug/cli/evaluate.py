"""Evaluate checkpoints or timm models on a suite. See `python evaluate.py --help` and conf/evaluate.yaml."""

import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nsaug import __version__
from nsaug.cli.app import (
    check_and_instantiate,
    check_groups,
    entry_point,
    instantiate,
    to_container,
    validate_config,
    validate_value,
)
from nsaug.cli.faults import one_line_faults
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import lock_folder
from nsaug.utils.processes import check_num_nodes

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from rich.console import Console

    from nsaug.data import TestDataset
    from nsaug.evaluation import BenchmarkResult, Entry, EvalModel, Plan, ResultCache, SuiteConfig, Workers
    from nsaug.models.noisy_vit import NoisyViT

log = logging.getLogger("nsaug.evaluate")

TOP_LEVEL_KEYS = {
    "data", "model", "suite", "checkpoint", "seed", "batch_size", "cache", "tracking", "split",
    "accelerator", "devices", "num_nodes", "shard", "dry_run", "compare",
}  # fmt: skip


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Run every benchmark of the suite on every model, then write tables, plots and a report."""
    suite, entries = check_settings(cfg)
    if cfg.compare is not None:
        with lock_folder(output_folder(), "evaluate"), one_line_faults(lambda: "type the same command again"):
            compare_evaluations(cfg)
        return
    with one_line_faults(lambda: f"finished blocks are in {cfg.cache}; type the same command to continue"):
        evaluate(cfg, suite, entries)


def evaluate(cfg: DictConfig, suite: "SuiteConfig", entries: "list[Entry]") -> None:
    """Compute the results that are not in the cache, in all processes, and report all of them in the first one."""
    from nsaug.evaluation import ResultCache, Runner, Workers, parse_shard
    from nsaug.evaluation.progress import show_progress

    shard = parse_shard(cfg.shard)
    cache = ResultCache(Path(cfg.cache))
    workers = Workers(cfg.accelerator, to_container(cfg.devices), cfg.num_nodes)

    # The first process lists the images and checks every model and benchmark before the others are started.
    prepared = prepare(cfg, suite, entries, workers.device) if workers.is_first else Prepared()
    if cfg.dry_run:
        if prepared.plan is not None:
            print_plan(cfg, prepared, cache, workers)
        return
    cache.check_writable()
    reports = workers.is_first and cfg.shard is None
    with lock_folder(output_folder(), "evaluate") if reports else nullcontext():
        workers.start()
        plan, num_workers = workers.broadcast((prepared.plan, prepared.num_workers))
        assert plan is not None
        load = partial(load_vit, cfg, workers.device)
        runner = Runner(plan, load, cache, workers.device, cfg.batch_size, num_workers // workers.local_size)
        pending = workers.broadcast(runner.pending(*shard) if workers.is_first else [])
        with quiet_loading():
            with show_progress(sum(unit.cost for unit in pending), workers):
                runner.compute((pending[number] for number in workers.take(len(pending))), workers.add_progress)
                workers.finish()
            if reports:
                results = runner.results()
        if reports:
            finish(cfg, suite, results, prepared, workers.device)
        elif workers.is_first:
            log.info(
                "shard %s is done, see %s: type the same command without shard= for the tables", cfg.shard, cfg.cache
            )


def output_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


@dataclass(frozen=True)
class Prepared:
    """What the first process finds before the work starts.

    Attributes:
        plan: the units of work.
        missing: one line per missing data set.
        unreadable: one line per model that cannot be evaluated.
        num_workers: number of processes that load images.
    """

    plan: "Plan | None" = None
    missing: Sequence[str] = ()
    unreadable: Sequence[str] = ()
    num_workers: int = 0


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Do not log once more which weights were loaded: the plan did."""
    logger = logging.getLogger("nsaug.models")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def prepare(cfg: DictConfig, suite: "SuiteConfig", entries: "list[Entry]", device: "torch.device") -> Prepared:
    """Check all models, data sets and benchmarks, and list the units of work."""
    from nsaug.evaluation import Planner, Subset, find_models

    entries, missing = drop_missing_datasets(entries, suite.require_data)
    candidates, damaged = find_models(to_container(cfg.checkpoint), cfg.model.get("name"))
    unreadable = [model.reason for model in damaged]
    get_data = make_data_loader(cfg)
    models = []
    for model in candidates:
        try:
            get_data(model)
            models.append(model)
        except UserError as error:
            unreadable.append(str(error))
    if not models:
        raise UserError(unreadable[0])
    check_model_settings(cfg, models)
    for reason in unreadable:
        log.error("%s", reason)
    for model in models:
        check_benchmarks(entries, get_data(model), model)
        if not uses_model_config(cfg, model):
            model.build_args()

    def load(model: "EvalModel") -> "tuple[NoisyViT, TestDataset]":
        data = get_data(model)
        vit = load_vit(cfg, device, model)
        check_classes(vit, data, model)
        return vit, data

    if len(models) == 1:  # its errors stop the command; one of many fails only its own benchmarks
        loaded = load(models[0])
        load = lambda model: loaded  # noqa: E731
    for model in models:
        if ema := model.metadata.get("settings", {}).get("ema"):
            log.info("%s: evaluating the moving average of its weights (ema=%g)", model.label, ema)
    subset = Subset(seed=cfg.seed, max_images=suite.max_images, image_list=suite.image_list)
    plan = Planner(models, entries, load, subset, cfg.batch_size).build()
    return Prepared(plan, missing, unreadable, get_data(models[0]).num_workers)


def check_settings(cfg: DictConfig) -> "tuple[SuiteConfig, list[Entry]]":
    """Check everything that can be checked without data or weights; return the suite and its benchmarks."""
    from typing import Literal

    from nsaug.evaluation import expand
    from nsaug.utils.types import NonNegativeInt, PositiveInt, Seed, Text

    validate_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "suite"]), TOP_LEVEL_KEYS)
    check_groups(cfg, ("data", "model", "suite", "tracking"))
    if cfg.model.get("compile") or cfg.model.get("grad_checkpointing"):
        raise UserError("model.compile and model.grad_checkpointing are for training: remove them")
    types = {
        "checkpoint": Text | list[Text] | None, "seed": Seed, "split": Literal["test", "val"],
        "batch_size": PositiveInt, "cache": Text, "shard": str | int | None, "dry_run": bool,
        "compare": list[Text] | None,
        "accelerator": str, "devices": PositiveInt | str | list[NonNegativeInt], "num_nodes": PositiveInt,
    }  # fmt: skip
    for key, annotation in types.items():
        validate_value(key, to_container(cfg[key]), annotation, is_converted=False)
    check_num_nodes("num_nodes", cfg.num_nodes)
    if cfg.model.get("checkpoint") is not None:
        raise UserError("model.checkpoint cannot be set: type checkpoint=PATH")
    suite = build_suite_config(to_container(cfg.suite))
    return suite, expand(suite, check_and_instantiate)


def build_suite_config(settings: Mapping[str, Any]) -> "SuiteConfig":
    """Check the keys of a suite and their types."""
    from pydantic import ValidationError

    from nsaug.evaluation import SuiteConfig
    from nsaug.utils.types import validation_message

    try:
        return SuiteConfig(**settings)
    except ValidationError as error:
        raise UserError(validation_message(error, "suite", SuiteConfig.__dataclass_fields__)) from error


def drop_missing_datasets(entries: "list[Entry]", require_data: bool) -> "tuple[list[Entry], list[str]]":
    """Remove benchmarks whose data set is missing; also return one line per missing data set.

    Raises:
        UserError: data sets are missing and `require_data` is set.
    """
    missing = missing_datasets(entries)
    if missing and require_data:
        raise UserError(f"{'; '.join(missing)} (suite.require_data=false skips them)")
    lines = []
    for reason, names in missing.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"skipped: {names[0]}{others}: {reason}")
        log.warning("%s", lines[-1])
    skipped = {name for names in missing.values() for name in names}
    return [entry for entry in entries if entry.name not in skipped], lines


def missing_datasets(entries: "list[Entry]") -> dict[str, list[str]]:
    """Names of the benchmarks whose own data set is missing, by reason."""
    from nsaug.data import MissingData

    missing: dict[str, list[str]] = {}
    for entry in entries:
        try:
            if entry.benchmark.data is not None:
                entry.benchmark.data.setup("test")
        except MissingData as error:
            names = missing.setdefault(str(error), [])
            if entry.name not in names:
                names.append(entry.name)
    return missing


def make_data_loader(cfg: DictConfig) -> "Callable[[EvalModel], TestDataset]":
    """Return a function from a model to its data: `data=` if set, otherwise what the model was trained on."""
    from nsaug.data import ImageDataModule, TestDataset
    from nsaug.data.datamodule import as_test_dataset
    from nsaug.data.registry import data_from_metadata, recorded_name

    loaded: dict[str, TestDataset] = {}

    def get_data(model: "EvalModel") -> "TestDataset":
        named = "_target_" in cfg.data
        key = json.dumps(None if named else model.metadata.get("data"), sort_keys=True)
        if key not in loaded:
            if named:
                data = instantiate(cfg.data, (ImageDataModule, TestDataset))
            else:  # such as +data.root=PATH
                data = data_from_metadata(model.metadata, to_container(cfg.data), source=model.config_file)
            loaded[key] = as_test_dataset(data, split=cfg.split)
            loaded[key].setup("test")
        if cfg.split == "val":
            check_validation_split(recorded_name(cfg.data._target_) if named else None, loaded[key], model)
        return loaded[key]

    return get_data


def check_validation_split(name: str | None, data: "TestDataset", model: "EvalModel") -> None:
    """Raise UserError if the validation images are not those that the model's training held out.

    Args:
        name: of the data as config.json records it; None if the data come from there.
        data: its validation split.
        model: not checked if its origin is unknown, or if it was trained on other data.
    """
    from nsaug.data.splits import record_split, split_changes

    splits = model.metadata.get("splits")
    if splits is None or name not in (None, model.metadata.get("data", {}).get("name")):
        return
    if changes := split_changes(splits, {"val": record_split(data.images.ids)}, ["val"]):
        raise UserError(
            f"split=val: {model.label} held out other images ({changes}), so that some of these may have been trained"
            " on: restore the images and data.val_fraction, or choose split=test"
        )


def check_benchmarks(entries: "list[Entry]", data: "TestDataset", model: "EvalModel") -> None:
    """Raise UserError if a benchmark does not fit the classes or the labels of a model's data."""
    for entry in entries:
        test_data = entry.benchmark.data or data
        try:
            entry.benchmark.check(test_data)
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error
        classes = entry.benchmark.class_subset(data) or [0]
        if max(classes) >= data.num_classes:
            raise UserError(
                f"{entry.name} restricts predictions to classes up to {max(classes)}, and {model.label} has"
                f" {data.num_classes}: choose another suite, or remove it from the suite"
            )
        if test_data.class_names != data.class_names:
            raise UserError(
                f"{entry.name} has {test_data.num_classes:,} classes such as {test_data.class_names[0]},"
                f" {model.label} has {data.num_classes:,} such as {data.class_names[0]}: choose another suite, or"
                " remove it from the suite"
            )


def uses_model_config(cfg: DictConfig, model: "EvalModel") -> bool:
    """Whether `model=` defines the architecture: not for weights with a config.json, nor for other timm models."""
    return (
        cfg.model.get("name") is not None
        and model.config is None
        and (model.checkpoint is not None or model.name == cfg.model.name)
    )


def check_model_settings(cfg: DictConfig, models: "list[EvalModel]") -> None:
    """Raise UserError if there are settings of the model that no model is built from."""
    if cfg.model and not any(uses_model_config(cfg, model) for model in models):
        given = "model=" if "_target_" in cfg.model else f"model.{next(iter(cfg.model))}"
        raise UserError(f"{given} has no effect, because {models[0].config_file} describes the model: leave it out")


def load_vit(cfg: DictConfig, device: "torch.device", model: "EvalModel") -> "NoisyViT":
    """Build a model with its weights."""
    from nsaug.models.factory import build_vit
    from nsaug.models.noisy_vit import NoisyViT

    if uses_model_config(cfg, model):
        vit = instantiate(cfg.model, NoisyViT, checkpoint=model.checkpoint)
    else:
        vit = build_vit(**model.build_args())
    return vit.to(device).eval()


def check_classes(vit: "NoisyViT", data: "TestDataset", model: "EvalModel") -> None:
    """Raise UserError if the classes of a model are not those of the data."""
    from nsaug.data.names import compare_class_order
    from nsaug.utils.text import preview

    if vit.model.num_classes != data.num_classes:
        raise UserError(
            f"{model.checkpoint or model.name} has {vit.model.num_classes} classes, the data set has"
            f" {data.num_classes}: finetune it first (python train.py), or set data=... to the data it was trained on"
        )
    recorded = model.metadata.get("class_names", data.class_names)
    if recorded != data.class_names:
        raise UserError(
            f"{model.checkpoint} was trained on other classes ({preview(recorded)}) than those of the data"
            f" ({preview(data.class_names)}): set data=... to the data it was trained on"
        )
    stated = model.label_names
    if stated and compare_class_order(stated, data.class_names) == "different":
        raise UserError(
            f"{model.checkpoint}: the classes in its config.json ({preview(stated)}) have another order than those of"
            f" the data ({preview(data.class_names)}): for data=folder, set data.classes to the names in that order"
        )


def print_plan(cfg: DictConfig, prepared: Prepared, cache: "ResultCache", workers: "Workers") -> None:
    """Print what an evaluation would do: blocks by benchmark, how many are cached, and an estimate of the time."""
    from rich.console import Console
    from rich.table import Table

    from nsaug.utils.text import format_duration

    plan = prepared.plan
    assert plan is not None
    table = Table()
    for column in ("benchmark", "images", "blocks", "cached"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    counts: dict[str, list[int]] = {}
    for job in plan.jobs:
        row = counts.setdefault(job.entry.title, [0, 0, 0])
        row[0] += len(job.positions)
        row[1] += len(job.units)
        row[2] += sum(key in cache for key in job.units)
    for title, row in counts.items():
        table.add_row(title, *(f"{count:,}" for count in row))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    for line in (*prepared.missing, *prepared.unreadable):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    failures = {job.failure for job in plan.jobs if job.failure}
    for failure in failures:
        console.print(f"cannot be evaluated: {failure}", highlight=False, markup=False, soft_wrap=True)
    remaining = sum(unit.cost for unit in {unit.key: unit for unit in plan.units if unit.key not in cache}.values())
    if remaining:
        seconds = remaining * seconds_per_cost(cfg, plan, workers.device) / workers.size
        how = f" in {workers.size} processes" if workers.size > 1 else ""
        log.info(
            "about %s%s, by the time of one batch; corruptions and loading may add to it", format_duration(seconds), how
        )
    else:
        log.info("everything is in the cache")


def seconds_per_cost(cfg: DictConfig, plan: "Plan", device: "torch.device") -> float:
    """Time of a forward pass of one image and one weight of the first model that can be loaded."""
    import torch

    job = next(job for job in plan.jobs if job.units)
    vit = load_vit(cfg, device, plan.models[job.model])
    # Not an image of the data: the first one may be unreadable.
    batch = torch.rand(min(cfg.batch_size, 32), *vit.data_config["input_size"], device=device)
    times = []
    with torch.no_grad():
        for _ in range(2):  # the first call compiles and allocates
            start = time.perf_counter()
            vit(batch).cpu()
            times.append(time.perf_counter() - start)
    return times[-1] / len(batch) / sum(parameter.numel() for parameter in vit.parameters())


def compare_evaluations(cfg: DictConfig) -> None:
    """Join the results of earlier evaluations, and report them as one; their checkpoints are not needed."""
    from nsaug.evaluation.reporting.archive import compare

    saved = compare(to_container(cfg.compare))
    report(cfg, saved.results, saved.weights, {"suite": "comparison"})


def finish(
    cfg: DictConfig, suite: "SuiteConfig", results: "list[BenchmarkResult]", prepared: Prepared, device: "torch.device"
) -> None:
    """Report the results, and raise UserError if a benchmark failed or a model could not be read."""
    num_failed = sum(result.output is None for result in results)
    if num_failed < len(results):
        head = {"suite": HydraConfig.get().runtime.choices["suite"], "device": str(device)}
        table = report(cfg, results, suite.score, head, prepared.missing)
        update_model_cards(cfg, results, table)
    if num_failed:
        reasons = dict.fromkeys(result.failure for result in results if result.failure)
        raise UserError(
            f"{num_failed} of {len(results)} benchmarks failed ({next(iter(reasons))}); the others are in {cfg.cache}"
        )
    if prepared.unreadable:
        total = len({result.model.label for result in results}) + len(prepared.unreadable)
        raise UserError(f"{len(prepared.unreadable)} of {total} models cannot be evaluated: {prepared.unreadable[0]}")


def report(
    cfg: DictConfig,
    results: "list[BenchmarkResult]",
    weights: Mapping[str, float],
    head: dict[str, str],
    missing: Sequence[str] = (),
) -> "pd.DataFrame":
    """Write all files, print the tables, and return the one of all numbers.

    Args:
        cfg: the configuration.
        results: all results.
        weights: of the score.
        head: lines for the head of the report; the command, the date and the versions are added.
        missing: one line per missing data set.
    """
    from nsaug.evaluation.reporting.report import write_report

    folder = output_folder()
    command = "python evaluate.py " + " ".join(HydraConfig.get().overrides.task)
    table = write_report(results, weights, head | report_metadata(command), folder, missing)
    num_models = len({result.model.label for result in results})
    instantiate(cfg.tracking).publish(folder, f"{head['suite']} of {num_models}", table, results)
    print_tables(table, missing)
    log.info("report.html, results.csv, .json, .md, .npz and .png, groups.csv, comparisons.csv: %s", folder)
    return table


def update_model_cards(cfg: DictConfig, results: "list[BenchmarkResult]", table: "pd.DataFrame") -> None:
    """Put the results into the README.md beside the weights of every run, where there is one and it can be written."""
    from nsaug.evaluation.reporting.aggregate import aggregate_seeds
    from nsaug.evaluation.reporting.formatting import markdown
    from nsaug.models.model_card import CARD, add_results
    from nsaug.models.weights import WEIGHTS
    from nsaug.utils.text import printable

    choices = HydraConfig.get().runtime.choices
    for model in {result.model.checkpoint: result.model for result in results}.values():
        rows = table[table["checkpoint"] == printable(model.checkpoint or "")]
        if model.checkpoint is None or Path(model.checkpoint).name != WEIGHTS or rows.empty:
            continue
        data = choices["data"] if "_target_" in cfg.data else model.metadata.get("data", {}).get("name", "its own data")
        title = f"suite {choices['suite']}, {cfg.split} images of {data}"
        text = f"{now()}, nsaug {__version__}, seed {cfg.seed}. {markdown(rows, aggregate_seeds(rows))}"
        folder = Path(model.checkpoint).parent
        try:
            add_results(folder, title, text)
        except OSError as error:
            log.warning("%s does not get these results: %s", folder / CARD, first_line(error))


def print_tables(table: "pd.DataFrame", missing: Sequence[str], console: "Console | None" = None) -> None:
    """Print the result tables and their notes; on stdout, if no console is given."""
    from rich.console import Console

    from nsaug.evaluation.reporting.aggregate import aggregate_seeds
    from nsaug.evaluation.reporting.formatting import caption, note_lines, terminal_tables

    console = console or Console()
    if not console.is_terminal:
        console.width = 200  # no line breaks within a table in files and pipes
    groups = aggregate_seeds(table)
    console.print(caption(table, groups), highlight=False, markup=False)
    for terminal_table in terminal_tables(groups):
        console.print(terminal_table)
    for line in [*note_lines(table), *missing]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M")


def report_metadata(command: str) -> dict[str, str]:
    """Lines for the head of the report: command, date, versions."""
    import lightning
    import timm
    import torch

    return {
        "command": command,
        "date": now(),
        "versions": f"nsaug {__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"lightning {lightning.__version__}",
    }


if __name__ == "__main__":
    main()
