"""`nsaug.evaluate`: evaluate.py on models and images of your own."""

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nsaug.api.models import Loaded, Model, find_device, load_model
from nsaug.api.settings import evaluation_config, value_errors
from nsaug.cli import evaluate as command
from nsaug.cli.app import check_and_instantiate, quiet_libraries, to_container
from nsaug.data.checked_loader import BatchFormat
from nsaug.data.names import wnids
from nsaug.evaluation import (
    BenchmarkResult,
    Entry,
    EvalModel,
    Planner,
    ResultCache,
    Runner,
    Subset,
    SuiteConfig,
    expand,
)
from nsaug.evaluation.loader_images import LoaderImages
from nsaug.evaluation.progress import SingleProcess, show_progress
from nsaug.evaluation.units import NUM_REFERENCE_IMAGES
from nsaug.models.noisy_vit import eval_mode
from nsaug.utils.errors import UserError
from nsaug.utils.rng import seed_devices_scope

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """What `evaluate` returns; `print` shows its tables, and so does Jupyter.

    Attributes:
        table: one row per model, benchmark, strength and metric, as in results.csv of evaluate.py: `value` and its 95 %
            interval, `low` to `high`.
        differences: paired differences between the models, `name` minus `other`, as in comparisons.csv: `difference`
            and its 95 % interval over images, `images_low` to `images_high`.
        failures: one line per benchmark that failed.
        missing: one line per data set of the suite that is missing.
    """

    table: "pd.DataFrame"
    differences: "pd.DataFrame"
    failures: tuple[str, ...]
    missing: tuple[str, ...]
    _results: list[BenchmarkResult]
    _score: Mapping[str, float]
    _head: Mapping[str, str]

    def __repr__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, force_terminal=False, force_jupyter=False, color_system=None)
        command.print_tables(self.table, [*self.missing, *self.failures], console)
        return text.getvalue().rstrip()

    def _repr_markdown_(self) -> str:
        from nsaug.evaluation.reporting.aggregate import aggregate_seeds
        from nsaug.evaluation.reporting.formatting import markdown

        return markdown(self.table, aggregate_seeds(self.table), [*self.missing, *self.failures])

    def save(self, folder: str | Path) -> None:
        """Write what evaluate.py writes: report.html, tables as CSV, JSON and Markdown, and results.npz."""
        from nsaug.evaluation.reporting.report import write_report

        head = {**self._head, **command.report_metadata("nsaug.evaluate")}
        write_report(self._results, self._score, head, Path(folder), self.missing)


def evaluate(
    model: Model | Mapping[str, Model],
    loader: Iterable[Any],
    *,
    suite: str | Mapping[str, Any] = "quick",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Evaluate vision transformers on a suite of benchmarks, as `python evaluate.py` does; they are left as they are.

    Args:
        model: as for `finetune`; or several by name, such as {"before": ..., "after": ...}, on the same images.
        loader: yields batches as for `finetune`, and is read once. The images stay in memory; with `max_images` only
            those that are selected. A batch may have unique ids as its third part, one text per image: random draws
            depend on the id of an image, so that with the ids of evaluate.py the numbers are the same, too.
        suite: a choice of conf/suite, such as clean, quick, attacks or corruptions; or the keys of a suite, such as
            {"attacks": {"pgd": {"eps": ["1/255", "4/255"]}}, "corruptions": ["fog"], "severities": [3]}.
        settings: of evaluate.py, by their names there: `suite.*`, `batch_size`, and `cache`, the folder in which
            finished blocks are kept, so that an evaluation that was interrupted continues.
        seed: of subsets, random starts and corruptions.
        device: as for `finetune`.

    Raises:
        ValueError: a wrong argument or batch, in one line.
    """
    with value_errors():
        cfg = evaluation_config(suite, settings or {}, seed)
        keys = to_container(cfg.suite) | (suite if isinstance(suite, Mapping) else {})
        config = command.build_suite_config(keys)
        entries = expand(config, check_and_instantiate)
        name = suite if isinstance(suite, str) else "custom"
        with quiet_libraries(), seed_devices_scope(seed):
            entries, missing = command.drop_missing_datasets(entries, config.require_data)
            models = _load_models(model)
            target = find_device(device, next(iter(models.values()))[1].mean.device)
            with _cache(None if cfg.cache is None else Path(cfg.cache)) as cache:
                results = _evaluate(cfg, config, entries, models, loader, target, cache)
        return _summarize(results, config.score, missing, {"suite": name, "device": str(target)})


def _evaluate(
    cfg: "DictConfig",
    suite: SuiteConfig,
    entries: list[Entry],
    models: Mapping[str, Loaded],
    loader: Iterable[Any],
    device: torch.device,
    cache: ResultCache,
) -> list[BenchmarkResult]:
    vits = {name: vit.to(device).eval() for name, (_, vit) in models.items()}
    subset = Subset(seed=cfg.seed, max_images=suite.max_images, image_list=suite.image_list)
    data = _read_images(models, loader, entries, subset)
    named = [_with_class_names(eval_model, data.class_names) for eval_model, _ in models.values()]
    for eval_model in named:
        command.check_benchmarks(entries, data, eval_model)
    plan = Planner(named, entries, lambda eval_model: (vits[eval_model.name], data), subset, cfg.batch_size).build()
    num_workers = max((entry.benchmark.data.num_workers for entry in entries if entry.benchmark.data), default=0)
    runner = Runner(plan, lambda eval_model: vits[eval_model.name], cache, device, cfg.batch_size, num_workers)
    pending, counter = runner.pending(), SingleProcess()
    with show_progress(sum(unit.cost for unit in pending), counter):
        runner.compute(pending, counter.add_progress)
    return runner.results()


def _summarize(
    results: list[BenchmarkResult], score: Mapping[str, float], missing: list[str], head: Mapping[str, str]
) -> Evaluation:
    from nsaug.evaluation.reporting.aggregate import tabulate
    from nsaug.evaluation.reporting.comparisons import pairwise_differences
    from nsaug.evaluation.reporting.text import printable_results

    failures = [f"{result.model.label}: {result.name} failed: {result.failure}" for result in results if result.failure]
    if len(failures) == len(results):
        raise UserError(failures[0])
    table, differences = tabulate(printable_results(results), score), pairwise_differences(results, score)
    return Evaluation(table, differences, tuple(dict.fromkeys(failures)), tuple(missing), results, score, head)


def _read_images(
    models: Mapping[str, Loaded], loader: Iterable[Any], entries: list[Entry], subset: Subset
) -> LoaderImages:
    """The images of the loader, for all models."""
    formats = {name: BatchFormat.of(vit, "loader") for name, (_, vit) in models.items()}
    (first, batch_format), *others = formats.items()
    for name, other in others:
        if other != batch_format:
            raise UserError(
                f"{first} and {name} differ in the size of their images, in the number of their classes or in their"
                " precision: evaluate them one by one"
            )
    recorded = next(iter(models.values()))[0].class_names
    numbers = [str(index) for index in range(batch_format.num_classes)]
    class_names = recorded or (wnids() if len(numbers) == len(wnids()) else numbers)
    own = [entry.benchmark for entry in entries if entry.benchmark.data is None]
    data = LoaderImages(loader, batch_format, class_names)
    selects_any = subset.max_images is None or subset.image_list is not None
    if not selects_any and all(benchmark.class_subset(data) is None for benchmark in own):
        data.keep = (subset, Subset(max_images=NUM_REFERENCE_IMAGES))
    data.setup("test")
    return data


def _with_class_names(model: EvalModel, class_names: list[str]) -> EvalModel:
    """A model whose weights name no classes gets those of the data: the caller's labels are in its order."""
    return model if model.class_names else replace(model, label_names=class_names)


def _load_models(model: Model | Mapping[str, Model]) -> dict[str, Loaded]:
    """Copies of the models by their names in tables."""
    if not isinstance(model, Mapping):
        eval_model, vit = _load(model)
        return {eval_model.name: (eval_model, vit)}
    if not model or not all(isinstance(name, str) and name for name in model):
        raise UserError('model: name the models, such as {"before": model, "after": tuned.model}')
    loaded = {name: _load(item) for name, item in model.items()}
    return {name: (replace(eval_model, name=name), vit) for name, (eval_model, vit) in loaded.items()}


def _load(model: Model) -> Loaded:
    """A model whose results no other one shares, unless it computes the same."""
    eval_model, vit = load_model(model)
    if isinstance(model, str | Path):  # its files tell all about it
        return eval_model, vit
    image = torch.rand((1, *vit.data_config["input_size"]), generator=torch.Generator().manual_seed(0)).to(vit.mean)
    with eval_mode(vit), torch.no_grad():
        logits = vit(image).float().cpu().numpy()
    return replace(eval_model, fingerprint=hashlib.sha256(logits.tobytes()).hexdigest()), vit


@contextmanager
def _cache(folder: Path | None) -> Iterator[ResultCache]:
    """The cache in a folder, or in a temporary one."""
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as path:
        cache = ResultCache(Path(path))
        cache.check_writable()
        yield cache
