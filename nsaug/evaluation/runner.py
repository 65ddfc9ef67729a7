"""Runs a suite: every subject on every benchmark, with what is already known taken from the store."""

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
    """A benchmark as its suite tells it.

    Attributes:
        name: its key in the suite.
        benchmark: what it is.
    """

    name: str
    benchmark: Benchmark | Analysis


@dataclass(frozen=True)
class BenchmarkResult:
    """One subject on one benchmark: what was found, or why there is nothing."""

    subject: EvalModel
    entry: NamedBenchmark
    result: PerImageResult | AnalysisResult | None
    failure: str | None = None
    notes: tuple[str, ...] = ()
    """What a reader of its numbers has to know of the images."""

    @property
    def per_image(self) -> PerImageResult | None:
        """The result of a benchmark that judges each image."""
        return self.result if isinstance(self.result, PerImageResult) else None

    @property
    def findings(self) -> AnalysisResult | None:
        """That of an analysis."""
        return self.result if isinstance(self.result, AnalysisResult) else None


def run_suite(
    subjects: list[EvalModel],
    entries: list[NamedBenchmark],
    opened: Callable[[EvalModel], tuple[NoisyViT, TestDataset]],
    store: ResultCache,
    selection: Subset,
    advance: Callable[[str, int], None],
) -> Iterator[BenchmarkResult]:
    """Judges, or finds in the store; yields each outcome once its result is on disk.

    A benchmark that fails is reported, with a traceback in the log file, and the others go on. What needs other models
    comes last: their noises, or attacks on them. Of runs that differ by their seed alone the first stands for all.

    Args:
        opened: gives a subject's model, on the device to work on, and its data, prepared for it.
        selection: of images, and the seed of all draws.
        advance: called with what is being done and the number of forwards (`Benchmark.work`) that were done or need
            not be.
    """
    judge = partial(_judged, opened=opened, store=store, selection=selection, advance=advance)
    transfers = [entry for entry in entries if isinstance(entry.benchmark, NoiseTransfer)]
    crossed = [entry for entry in entries if isinstance(entry.benchmark, Benchmark) and entry.benchmark.transfer]
    own = [entry for entry in entries if entry not in (*transfers, *crossed)]
    learned: dict[str, dict[str, np.ndarray]] = {entry.name: {} for entry in entries}
    for subject in subjects:
        for outcome in judge(subject, own, learned):
            if outcome.findings is not None:
                learned[outcome.entry.name].setdefault(subject.name, outcome.findings.noises)
            yield outcome
    first = {subject.name: subject for subject in reversed(subjects)}
    for subject in subjects if len(first) > 1 else []:
        if transfers:
            yield from judge(subject, transfers, learned)
        for source in reversed(first.values()) if crossed else []:
            if source.name != subject.name:
                from_source = [NamedBenchmark(f"{entry.name} from {source.name}", entry.benchmark) for entry in crossed]
                yield from judge(subject, from_source, learned, source)


def _judged(
    subject: EvalModel,
    entries: list[NamedBenchmark],
    learned: dict[str, dict[str, np.ndarray]],
    source: EvalModel | None = None,
    *,
    opened: Callable[[EvalModel], tuple[NoisyViT, TestDataset]],
    store: ResultCache,
    selection: Subset,
    advance: Callable[[str, int], None],
) -> Iterator[BenchmarkResult]:
    """One subject on each entry.

    Args:
        learned: the noises that analyses found, by entry and by name.
        source: whom attacks are made on, where it is another.
    """
    try:
        other = None if source is None else opened(source)[0]
        vit, data = opened(subject)
        common = {"weights": model_digest(vit), "classes": data.class_names, "seed": selection.seed}
        common["device"] = vit.mean.device.type
    except Exception as error:
        failure = _reported(error, subject.label)
        for entry in entries:
            yield BenchmarkResult(subject, entry, None, failure)
        return
    chosen = _Chosen(vit, data, selection)
    where = str(Path(subject.checkpoint).resolve()) if subject.checkpoint else subject.name
    for entry in entries:
        title = f"{subject.label}: {entry.name}"
        benchmark = entry.benchmark
        run: Callable[..., PerImageResult | AnalysisResult] = benchmark.run
        try:
            images, digest, notes = chosen.by(benchmark)
        except Exception as error:
            yield BenchmarkResult(subject, entry, None, _reported(error, title))
            continue
        parts = common | {"settings": benchmark.settings, "data": digest}
        if isinstance(benchmark, NoiseTransfer):
            noises = {name: each for name, each in learned[benchmark.of].items() if name != subject.name}
            run = partial(run, noises=noises)
            parts["noises"] = {name: hashlib.sha256(each.tobytes()).hexdigest() for name, each in noises.items()}
        if isinstance(benchmark, Benchmark):
            run = partial(run, class_subset=benchmark.class_subset(data))
        if other is not None:
            run = partial(run, attacked_on=other)
            parts["source"] = model_digest(other)
        identity = CacheKey(where, entry.name, parts)
        result = store.find(identity)
        if result is not None:
            advance(title, benchmark.work(len(images)))
            yield BenchmarkResult(subject, entry, result, notes=(*notes, *_unread(images, result, title)))
            continue
        if changed := store.changed(identity):
            log.info("%s is judged anew: changed since it was last are its %s", title, " and ".join(changed))
        advance(title, 0)
        try:
            result = run(vit, data.readable_loader(images), selection.seed, partial(advance, title))
        except Exception as error:
            yield BenchmarkResult(subject, entry, None, _reported(error, title))
            continue
        store.keep(identity, result)
        yield BenchmarkResult(subject, entry, result, notes=(*notes, *_unread(images, result, title)))


class _Chosen:
    """The images that each benchmark judges a model on."""

    def __init__(self, vit: NoisyViT, data: TestDataset, selection: Subset) -> None:
        self.vit = vit
        self.data = data
        self.selection = selection
        self._known: dict[Any, tuple[Any, str, list[str]]] = {}

    def by(self, benchmark: Benchmark | Analysis) -> tuple[ImageSet, str, list[str]]:
        """Images, prepared for the model; their digest; what a reader has to know of them."""
        other, classes = benchmark.data, benchmark.class_subset(self.data)
        key = id(other), tuple(classes or ())
        if key not in self._known:
            source = self.data if other is None else other
            source.setup("test")
            source.configure(self.vit.data_config)
            images, choice = self.selection.of(source.images, classes, listed=other is None)
            self._known[key] = images, f"{images.digest()} {classes}", [*source.notes, *choice]
        images, digest, notes = self._known[key]
        on_the_fly = ["made on the fly"] if other is None and benchmark.corrupted_by else []
        return images, digest, [*on_the_fly, *notes]


def _unread(images: ImageSet, result: PerImageResult | AnalysisResult, title: str) -> list[str]:
    """What is to be said of images that were to be judged and could not be read."""
    if isinstance(result, AnalysisResult) or len(result.ids) == len(images):
        return []
    lost = sorted(set(images.ids).difference(result.ids))
    remark = f"{len(lost):,} of {len(images):,} images cannot be read ({preview(lost)})"
    log.warning("%s: %s", title, remark)
    return [remark]


def _reported(error: Exception, title: str) -> str:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    log.error("%s failed: %s", title, reason)
    if not isinstance(error, UserError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    return reason
