"""Evaluate checkpoints or timm models on a suite. See `python evaluate.py --help` and conf/evaluate.yaml."""

import datetime
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nsaug.cli.app import entry_point, instantiate, validate_config, validate_value
from nsaug.utils.errors import UserError, first_line

if TYPE_CHECKING:
    import pandas as pd

    from nsaug.data import TestDataset
    from nsaug.evaluation import EvalModel, NamedBenchmark, Subset
    from nsaug.models.noisy_vit import NoisyViT

log = logging.getLogger("nsaug.evaluate")

TOP_LEVEL_KEYS = {"data", "model", "suite", "checkpoint", "seed", "batch_size", "device", "cache", "tracking", "split"}
SUITE_KEYS = {
    "benchmarks", "score", "corruption_error", "max_images", "image_list", "require_data",
    "eps", "eps_autoattack", "eps_l2", "std", "severities", "num_images", "num_noises", "layer", "root", "imagenet",
}  # fmt: skip


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Run every benchmark of the suite on every model, then write tables, plots and a report."""
    check_settings(cfg)

    import pandas as pd
    import torch

    from nsaug.evaluation import ResultCache, Subset, UnreadableModel, find_models, run_suite
    from nsaug.evaluation.reporting.aggregate import COLUMNS, append_csv, cross_benchmark_rows, result_rows
    from nsaug.evaluation.reporting.report import write_report

    folder = Path(HydraConfig.get().runtime.output_dir)
    device = torch.device(cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")

    # Suite
    benchmarks = build_benchmarks(cfg)
    score = build_optional(cfg.suite.get("score"))
    corruption_error = build_optional(cfg.suite.get("corruption_error"))
    if score:
        score.check(benchmark.name for benchmark in benchmarks)
    benchmarks, missing = drop_missing_datasets(benchmarks, cfg.suite.get("require_data", False))
    subset = Subset(seed=cfg.seed, max_images=cfg.suite.max_images, image_list=cfg.suite.get("image_list"))

    # Models and data: every model is checked before the first one is evaluated
    checkpoint = list(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else cfg.checkpoint
    candidates, unreadable = find_models(checkpoint, cfg.model.get("name"))
    get_data = make_data_loader(cfg)
    models = []
    for model in candidates:
        try:
            get_data(model)
            models.append(model)
        except UserError as error:
            unreadable.append(UnreadableModel(model.checkpoint or model.name, str(error)))
    if not models:
        raise UserError(unreadable[0].reason)
    for failure in unreadable:
        log.error("%s", failure.reason)
    num_forwards = 0
    for model in models:
        data = get_data(model)
        if corruption_error:
            corruption_error.check(data)
        check_benchmarks(benchmarks, data, model)
        num_forwards += count_forwards(benchmarks, data, subset)
        if not uses_model_config(cfg, model):
            model.build_args()

    def load_model_and_data(model: "EvalModel") -> "tuple[NoisyViT, TestDataset]":
        data = get_data(model)
        vit = load_model(cfg, model, data).to(device)
        data.configure(vit.data_config)
        if ema := model.metadata.get("settings", {}).get("ema"):
            log.info("%s: evaluating the moving average of its weights (ema=%g)", model.label, ema)
        return vit, data

    # A single model is loaded now, so that its errors stop the command; one of many fails only its own benchmarks.
    preloaded = load_model_and_data(models[0]) if len(models) == 1 else None

    # Evaluation: rows are appended to results.csv as they come
    results = []
    rows: list[dict[str, Any]] = []
    cache = ResultCache(Path(cfg.cache))
    with progress_bar(num_forwards) as on_progress:
        for result in run_suite(
            models, benchmarks, lambda model: preloaded or load_model_and_data(model), cache, subset, on_progress
        ):
            new_rows = result_rows(result)
            append_csv(pd.DataFrame(new_rows, columns=COLUMNS), folder / "results.csv", new=not rows)
            results.append(result)
            rows += new_rows

    # Report
    num_failed = sum(result.output is None for result in results)
    if num_failed < len(results):
        table = pd.DataFrame(rows + cross_benchmark_rows(results, score, corruption_error), columns=COLUMNS)
        class_names = get_data(models[0]).class_names
        metadata = report_metadata(cfg, device)
        write_report(table, results, score, class_names, metadata, folder, missing)
        instantiate(cfg.tracking).publish(folder, f"{metadata['suite']} of {len(models)}", table, results)
        print_tables(table, missing)
        log.info("report.html, results.csv, .json, .md and .png, groups.csv, comparisons.csv: %s", folder)
    if num_failed:
        raise UserError(f"{num_failed} of {len(results)} benchmarks failed (see above); the others are in {cfg.cache}")
    if unreadable:
        total = len(models) + len(unreadable)
        raise UserError(f"{len(unreadable)} of {total} models cannot be evaluated: {unreadable[0].reason}")


def check_settings(cfg: DictConfig) -> None:
    """Check everything that can be checked without data or weights."""
    from typing import Literal

    import torch

    from nsaug.utils.types import PositiveInt, Seed

    validate_config(cfg, TOP_LEVEL_KEYS)
    validate_value(
        "checkpoint",
        OmegaConf.to_container(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else cfg.checkpoint,
        str | list[str] | None,
    )
    if unknown := set(map(str, cfg.suite)) - SUITE_KEYS:
        raise UserError(f"suite.{min(unknown)}: no such setting; choose among {', '.join(sorted(SUITE_KEYS))}")
    for key in ("score", "corruption_error"):
        if cfg.suite.get(key) is not None and "_target_" not in cfg.suite[key]:
            raise UserError(f"suite.{key} has no _target_: add one, or set suite.{key}=null")
    if cfg.model.get("compile") or cfg.model.get("grad_checkpointing"):
        raise UserError("model.compile and model.grad_checkpointing are for training: remove them")
    validate_value("seed", cfg.seed, Seed)
    validate_value("split", cfg.split, Literal["test", "val"])
    validate_value("batch_size", cfg.batch_size, PositiveInt | None)
    validate_value("cache", cfg.cache, str)
    validate_value("suite.max_images", cfg.suite.max_images, PositiveInt | None)
    validate_value("suite.image_list", cfg.suite.get("image_list"), str | None)
    validate_value("suite.require_data", cfg.suite.get("require_data", False), bool)
    if cfg.device != "auto":
        try:
            torch.empty(0, device=cfg.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device={cfg.device} cannot be used ({first_line(error)}): type device=cpu or device=auto"
            ) from error


def build_optional(node: DictConfig | None) -> Any:
    return None if node is None else instantiate(node)


def build_benchmarks(cfg: DictConfig) -> "list[NamedBenchmark]":
    """Build the suite's benchmarks and check that noise transfers name an analysis of the suite."""
    from nsaug.evaluation import Analysis, Benchmark, NamedBenchmark, NoiseAnalysis, NoiseTransfer

    benchmarks = [NamedBenchmark(str(name), instantiate(node)) for name, node in cfg.suite.benchmarks.items()]
    sources = [item.name for item in benchmarks if isinstance(item.benchmark, NoiseAnalysis)]
    for item in benchmarks:
        if not isinstance(item.benchmark, Benchmark | Analysis):
            raise UserError(f"suite.benchmarks.{item.name}: set its _target_ to nsaug.evaluation.Benchmark")
        if isinstance(item.benchmark, NoiseTransfer) and item.benchmark.source not in sources:
            raise UserError(
                f"suite.benchmarks.{item.name}.source={item.benchmark.source}: no such NoiseAnalysis in the suite;"
                f" it has: {', '.join(sources) or 'none'}"
            )
    return benchmarks


def drop_missing_datasets(
    benchmarks: "list[NamedBenchmark]", require_data: bool
) -> "tuple[list[NamedBenchmark], list[str]]":
    """Remove benchmarks whose data set is missing; also return one line per missing data set.

    Raises:
        UserError: data sets are missing and `require_data` is set, or no benchmark remains.
    """
    missing = missing_datasets(benchmarks)
    if missing and require_data:
        raise UserError(f"{'; '.join(missing)} (suite.require_data=false skips them)")
    for reason, names in missing.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.warning("skipped: %s%s: %s", names[0], others, reason)
    skipped = {name for names in missing.values() for name in names}
    remaining = [item for item in benchmarks if item.name not in skipped]
    if not remaining:
        raise UserError(f"no benchmarks left to run: {'; '.join(missing)}")
    return remaining, [f"skipped: {', '.join(names)}: {reason}" for reason, names in missing.items()]


def missing_datasets(benchmarks: "list[NamedBenchmark]") -> dict[str, list[str]]:
    """Names of the benchmarks whose own data set is missing, by reason."""
    from nsaug.data import MissingData

    missing: dict[str, list[str]] = {}
    for item in benchmarks:
        try:
            if item.benchmark.data is not None:
                item.benchmark.data.setup("test")
        except MissingData as error:
            missing.setdefault(str(error), []).append(item.name)
    return missing


def make_data_loader(cfg: DictConfig) -> "Callable[[EvalModel], TestDataset]":
    """Return a function from a model to its data: `data=` if set, otherwise what the model was trained on."""
    from nsaug.data.datamodule import as_test_dataset
    from nsaug.data.registry import data_from_metadata

    loaded: dict[str, TestDataset] = {}

    def get_data(model: "EvalModel") -> "TestDataset":
        named = "_target_" in cfg.data
        batch_size = {"batch_size": cfg.batch_size} if cfg.batch_size else {}
        key = json.dumps(None if named else model.metadata.get("data"), sort_keys=True)
        if key not in loaded:
            if named:
                data = instantiate(cfg.data, **batch_size)
            else:  # such as +data.root=PATH
                overrides: Any = OmegaConf.to_container(cfg.data, resolve=True)
                data = data_from_metadata(model.metadata, overrides | batch_size, source=model.config_file)
            loaded[key] = as_test_dataset(data, split=cfg.split)
            loaded[key].setup("test")
        return loaded[key]

    return get_data


def check_benchmarks(benchmarks: "list[NamedBenchmark]", data: "TestDataset", model: "EvalModel") -> None:
    """Raise UserError if a benchmark does not fit the classes of a model's data."""
    for item in benchmarks:
        test_data = item.benchmark.data or data
        if getattr(item.benchmark, "attack", None) and test_data.images.has_label_sets:
            raise UserError(
                f"suite.benchmarks.{item.name}: attacks need one label per image, this data set has sets of labels"
            )
        if test_data.class_names != data.class_names:
            raise UserError(
                f"suite.benchmarks.{item.name} has {test_data.num_classes:,} classes such as"
                f" {test_data.class_names[0]}, {model.label} has {data.num_classes:,} such as {data.class_names[0]}:"
                f" choose another suite, or remove the benchmark with '~suite.benchmarks.{item.name}'"
            )


def count_forwards(benchmarks: "list[NamedBenchmark]", data: "TestDataset", subset: "Subset") -> int:
    """Approximate number of forward passes of all benchmarks, for the progress bar."""
    total = 0
    for item in benchmarks:
        benchmark = item.benchmark
        images = (benchmark.data or data).images
        selected, _ = subset.select(images, benchmark.class_subset(data), require_match=benchmark.data is None)
        total += benchmark.num_forwards(len(selected))
    return total


def uses_model_config(cfg: DictConfig, model: "EvalModel") -> bool:
    """Whether `model=` defines the architecture: not for weights with a config.json, nor for other timm models."""
    return (
        cfg.model.get("name") is not None
        and model.config is None
        and (model.checkpoint is not None or model.name == cfg.model.name)
    )


def load_model(cfg: DictConfig, model: "EvalModel", data: "TestDataset") -> "NoisyViT":
    """Build a model and check that its classes are those of the data."""
    from nsaug.models.factory import build_vit

    if uses_model_config(cfg, model):
        vit: NoisyViT = instantiate(cfg.model, checkpoint=model.checkpoint)
    else:
        vit = build_vit(**model.build_args())
    if vit.model.num_classes != data.num_classes:
        raise UserError(
            f"{model.checkpoint or model.name} has {vit.model.num_classes} classes, the data set has"
            f" {data.num_classes}: finetune it first (python train.py), or set data=... to the data it was trained on"
        )
    class_names = model.metadata.get("class_names", data.class_names)
    if class_names != data.class_names:
        raise UserError(
            f"{model.checkpoint} was trained on other classes ({class_names[:3]} ...) than {data.class_names[:3]} ..."
        )
    return vit


@contextmanager
def progress_bar(total: int) -> "Iterator[Callable[[str, int], None]]":
    """Show a progress bar; yields a function that takes a title and the number of forward passes done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda title, num_forwards: progress.update(task, description=title, advance=num_forwards)


def print_tables(table: "pd.DataFrame", missing: list[str]) -> None:
    """Print the result tables and their notes."""
    from rich.console import Console

    from nsaug.evaluation.reporting.aggregate import aggregate_seeds
    from nsaug.evaluation.reporting.formatting import caption, note_lines, terminal_tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # no line breaks within a table in files and pipes
    groups = aggregate_seeds(table)
    console.print(caption(table, groups), highlight=False, markup=False)
    for terminal_table in terminal_tables(groups):
        console.print(terminal_table)
    for line in [*note_lines(table), *missing]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def report_metadata(cfg: DictConfig, device: Any) -> dict[str, str]:
    """Lines for the head of the report: suite, command, date, device, versions."""
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


if __name__ == "__main__":
    main()
