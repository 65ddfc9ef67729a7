"""Runs every benchmark of a suite on every model; results in the cache are reused."""

import hashlib
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nsaug.data import TestDataset
from nsaug.data.dataset import ImageSet, preview
from nsaug.evaluation.analyses import Analysis, NoiseTransfer
from nsaug.evaluation.benchmarks import Benchmark
from nsaug.evaluation.cache import AnalysisResult, CacheKey, PerImageResult, ResultCache, model_digest
from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.subset import Subset
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, first_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedBenchmark:
    """A benchmark or analysis and its name in the suite."""

    name: str
    benchmark: Benchmark | Analysis


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of one model on one benchmark.

    Attributes:
        model: the model.
        named_benchmark: the benchmark and its name in the suite.
        output: scores or measurements; None if the benchmark failed.
        failure: why it failed.
        notes: remarks on the images, for the report.
    """

    model: EvalModel
    named_benchmark: NamedBenchmark
    output: PerImageResult | AnalysisResult | None
    failure: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the benchmark in the suite."""
        return self.named_benchmark.name

    @property
    def benchmark(self) -> Benchmark | Analysis:
        return self.named_benchmark.benchmark

    @property
    def per_image(self) -> PerImageResult | None:
        """The output of a benchmark that scores every image; None for others."""
        return self.output if isinstance(self.output, PerImageResult) else None

    @property
    def analysis(self) -> AnalysisResult | None:
        """The output of an analysis; None for others."""
        return self.output if isinstance(self.output, AnalysisResult) else None


def run_suite(
    models: list[EvalModel],
    benchmarks: list[NamedBenchmark],
    load_model_and_data: Callable[[EvalModel], tuple[NoisyViT, TestDataset]],
    cache: ResultCache,
    subset: Subset,
    on_progress: Callable[[str, int], None],
) -> Iterator[BenchmarkResult]:
    """Evaluate all models, and yield every result once it is in the cache.

    A benchmark that fails is logged, with its traceback at debug level, and the others continue. Benchmarks that need
    other models (their noises, or attacks on them) run last; of models with one name, only the first is a source.

    Args:
        load_model_and_data: returns a model on its device, and its data configured for it.
        subset: selects the images; its seed is the seed of all random draws.
        on_progress: called with a title and the number of forward passes done (`Benchmark.num_forwards`).
    """
    run = partial(
        _run_benchmarks,
        load_model_and_data=load_model_and_data,
        cache=cache,
        subset=subset,
        on_progress=on_progress,
    )
    noise_transfers = [item for item in benchmarks if isinstance(item.benchmark, NoiseTransfer)]
    transfer_attacks = [item for item in benchmarks if getattr(item.benchmark, "transfer", False)]
    white_box = [item for item in benchmarks if item not in (*noise_transfers, *transfer_attacks)]
    noises: dict[str, dict[str, np.ndarray]] = {item.name: {} for item in benchmarks}
    for model in models:
        for result in run(model, white_box, noises):
            if result.analysis is not None:
                noises[result.name].setdefault(model.name, result.analysis.noises)
            yield result
    sources = {model.name: model for model in reversed(models)}
    for model in models if len(sources) > 1 else []:
        if noise_transfers:
            yield from run(model, noise_transfers, noises)
        for source in reversed(sources.values()) if transfer_attacks else []:
            if source.name != model.name:
                named = [NamedBenchmark(f"{item.name} from {source.name}", item.benchmark) for item in transfer_attacks]
                yield from run(model, named, noises, source)


def _run_benchmarks(
    model: EvalModel,
    benchmarks: list[NamedBenchmark],
    noises: dict[str, dict[str, np.ndarray]],
    source: EvalModel | None = None,
    *,
    load_model_and_data: Callable[[EvalModel], tuple[NoisyViT, TestDataset]],
    cache: ResultCache,
    subset: Subset,
    on_progress: Callable[[str, int], None],
) -> Iterator[BenchmarkResult]:
    """Run benchmarks on one model.

    Args:
        noises: learned noises, by analysis and by model name.
        source: the model to attack, if it is another one.
    """
    try:
        source_vit = None if source is None else load_model_and_data(source)[0]
        vit, data = load_model_and_data(model)
        common = {"weights": model_digest(vit), "classes": data.class_names, "seed": subset.seed}
        common["device"] = vit.mean.device.type
    except Exception as error:
        failure = _log_failure(error, model.label)
        for item in benchmarks:
            yield BenchmarkResult(model, item, None, failure)
        return
    subsets = _SubsetCache(vit, data, subset)
    path_or_name = str(Path(model.checkpoint).resolve()) if model.checkpoint else model.name
    for item in benchmarks:
        title = f"{model.label}: {item.name}"
        benchmark = item.benchmark
        evaluate: Callable[..., PerImageResult | AnalysisResult] = benchmark.run
        try:
            images, digest, notes = subsets.get(benchmark)
        except Exception as error:
            yield BenchmarkResult(model, item, None, _log_failure(error, title))
            continue
        parts = common | {"settings": benchmark.settings, "data": digest}
        if isinstance(benchmark, NoiseTransfer):
            others = {name: array for name, array in noises[benchmark.source].items() if name != model.name}
            evaluate = partial(evaluate, noises=others)
            parts["noises"] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in others.items()}
        if isinstance(benchmark, Benchmark):
            evaluate = partial(evaluate, class_subset=benchmark.class_subset(data))
        if source_vit is not None:
            evaluate = partial(evaluate, source=source_vit)
            parts["source"] = model_digest(source_vit)
        key = CacheKey(path_or_name, item.name, parts)
        output = cache.load(key)
        if output is not None:
            on_progress(title, benchmark.num_forwards(len(images)))
        else:
            if changed := cache.changed_parts(key):
                log.info("%s: evaluating again, changed since the last time: %s", title, ", ".join(changed))
            on_progress(title, 0)
            try:
                output = evaluate(vit, data.readable_loader(images), subset.seed, partial(on_progress, title))
            except Exception as error:
                yield BenchmarkResult(model, item, None, _log_failure(error, title))
                continue
            cache.save(key, output)
        yield BenchmarkResult(model, item, output, notes=(*notes, *_unreadable_notes(images, output, title)))


class _SubsetCache:
    """The images of every benchmark, prepared for one model."""

    def __init__(self, vit: NoisyViT, data: TestDataset, subset: Subset) -> None:
        self.vit = vit
        self.data = data
        self.subset = subset
        self._cache: dict[Any, tuple[ImageSet, str, list[str]]] = {}

    def get(self, benchmark: Benchmark | Analysis) -> tuple[ImageSet, str, list[str]]:
        """Return the images of a benchmark, their digest, and notes for the report."""
        own_data, classes = benchmark.data, benchmark.class_subset(self.data)
        key = id(own_data), tuple(classes or ())
        if key not in self._cache:
            data = self.data if own_data is None else own_data
            data.setup("test")
            data.configure(self.vit.data_config)
            images, subset_notes = self.subset.select(data.images, classes, require_match=own_data is None)
            self._cache[key] = images, f"{images.digest()} {classes}", [*data.notes, *subset_notes]
        images, digest, notes = self._cache[key]
        on_the_fly = ["generated on the fly"] if own_data is None and benchmark.corruption_name else []
        return images, digest, [*on_the_fly, *notes]


def _unreadable_notes(images: ImageSet, output: PerImageResult | AnalysisResult, title: str) -> list[str]:
    """Note, and log, how many of the selected images could not be read."""
    if isinstance(output, AnalysisResult) or len(output.ids) == len(images):
        return []
    missing = sorted(set(images.ids).difference(output.ids))
    note = f"{len(missing):,} of {len(images):,} images cannot be read ({preview(missing)})"
    log.warning("%s: %s", title, note)
    return [note]


def _log_failure(error: Exception, title: str) -> str:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    log.error("%s failed: %s", title, reason)
    if not isinstance(error, UserError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    return reason
