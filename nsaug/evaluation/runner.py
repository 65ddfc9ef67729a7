"""Computes the units of a plan, in one or more processes, and merges their results."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsaug.data.dataset import PAD_LABEL, ImageSet, UnreadableImage
from nsaug.data.fingerprints import UNREADABLE
from nsaug.evaluation.analyses import Analysis, AnalysisImages
from nsaug.evaluation.benchmarks import Batch, Constants, ImageBenchmark
from nsaug.evaluation.benchmarks.base import split_on_oom
from nsaug.evaluation.cache import ResultCache
from nsaug.evaluation.loading import Images, LoadFailure, load_units
from nsaug.evaluation.metrics import PerImageScores
from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult, PerImageResult
from nsaug.evaluation.units import NUM_SAMPLES, Job, Plan, Unit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, first_line, log_failure
from nsaug.utils.text import preview

log = logging.getLogger(__name__)

MAX_LOADED_MODELS = 4
"""Number of models that a process keeps in memory."""


class Runner:
    """Computes the units of a plan; results go to the cache.

    After a failure the other units of the same job are skipped.

    Args:
        plan: what there is to do.
        load_model: returns a model on the device.
        cache: where results are stored; a result that cannot be written is kept in memory.
        device: device of the models and the images.
        batch_size: number of images per forward pass of an analysis.
        num_workers: number of processes that load images.
    """

    def __init__(
        self,
        plan: Plan,
        load_model: Callable[[EvalModel], NoisyViT],
        cache: ResultCache,
        device: torch.device,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.plan = plan
        self.cache = cache
        self.device = device
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._failures: dict[int, str] = {}
        self._unsaved: dict[str, PerImageResult | AnalysisResult] = {}
        self._warned = self._warned_of_changes = False
        self._provisional: set[Any] = set()
        self._load = lru_cache(MAX_LOADED_MODELS)(lambda number: load_model(plan.models[number]).eval())
        self._constants = lru_cache(MAX_LOADED_MODELS)(self._make_constants)

    def pending(self, shard: int = 0, num_shards: int = 1) -> list[Unit]:
        """Units without a result, without duplicates, the most expensive first.

        Args:
            shard: take this one of fixed shares of all units, counted from 0.
            num_shards: how many shares there are.
        """
        units = {unit.key: unit for unit in reversed(self.plan.units)}
        distinct = [unit for unit in self.plan.units if units[unit.key] is unit]
        return [unit for unit in distinct[shard::num_shards] if unit.key not in self.cache]

    def compute(self, units: Iterable[Unit], on_done: Callable[[Unit], None]) -> None:
        """Compute units, and take the next one while one is computed.

        Args:
            units: the units.
            on_done: called after each of them.
        """

        def remaining() -> Iterator[Unit]:
            for unit in units:
                if unit.job in self._failures:  # its images need not be loaded
                    on_done(unit)
                else:
                    yield unit

        for unit, images in load_units(remaining(), self.plan.image_sets, self.num_workers, self.device):
            if unit.job not in self._failures:
                self._compute(unit, images)
            on_done(unit)

    def results(self) -> list[BenchmarkResult]:
        """Results of all jobs, in the order of the plan; what no process has computed is computed now.

        That is what another process failed to compute or to save, what needed its result, and damaged entries.
        """
        outputs = {unit.key: self._result(unit.key) for unit in self.plan.units}
        missing = [unit for unit in self.plan.units if outputs[unit.key] is None and unit.job not in self._failures]
        self.compute(missing, lambda unit: None)
        outputs |= {unit.key: self._result(unit.key) for unit in missing}
        return [self._merge(number, job, outputs) for number, job in enumerate(self.plan.jobs)]

    def _result(self, key: str) -> PerImageResult | AnalysisResult | None:
        return self._unsaved.get(key) or self.cache.load(key)

    def _compute(self, unit: Unit, images: Images | LoadFailure | None) -> None:
        job = self.plan.jobs[unit.job]
        title = f"{self.plan.models[job.model].label}: {job.entry.title}"
        try:
            if isinstance(images, LoadFailure):
                raise images.error
            result = self._evaluate(job, unit, images)
        except Exception as error:
            self._failures[unit.job] = log_failure(log, title, error)
            return
        if result is None:
            return
        # The key depends on the content of all images: a result without one that was removed since then is not it.
        changed = self._have_changed(unit.image_set, unit.positions, images)
        if changed or self._constants_key(job, unit) in self._provisional:
            self._unsaved[unit.key] = result
            if not self._warned_of_changes:
                log.warning("images were removed or restored since the start: results on them are not cached")
            self._warned_of_changes = True
        else:
            self._save(unit.key, title, result)

    def _save(self, key: str, title: str, result: PerImageResult | AnalysisResult) -> None:
        try:
            self.cache.save(key, title, result)
        except OSError as error:
            if not self._warned:
                log.warning(
                    "results cannot be written to the cache (%s): they reach the tables, but will be computed again",
                    first_line(error),
                )
            self._warned = True
            self._unsaved[key] = result

    def _have_changed(self, image_set: int, positions: Sequence[int], images: Images | None) -> bool:
        """Whether images are missing that could be opened when the plan was made, or could be read only since then."""
        available = self.plan.image_sets[image_set]
        read = set(images.ids) if images else set()

        def has_changed(position: int) -> bool:
            was_unreadable = (image_set, position) in self.plan.unreadable
            if available.ids[position] in read:
                return was_unreadable
            return not was_unreadable and not _is_damaged(available, position)

        return any(map(has_changed, positions))

    @staticmethod
    def _constants_key(job: Job, unit: Unit) -> Any:
        return job.model if job.source is None else job.source, unit.image_set, job.classes, job.reference

    @torch.no_grad()
    def _evaluate(self, job: Job, unit: Unit, images: Images | None) -> PerImageResult | AnalysisResult | None:
        """Result of a unit; None if what it requires is not there yet."""
        model, benchmark = self._load(job.model), job.entry.benchmark
        if isinstance(benchmark, Analysis):
            if images is None or len(images.ids) < 2:
                raise UserError("an analysis needs at least two images: one to learn noise on, one to evaluate it")
            required = {name: self._result(key) for name, key in job.required.items()}
            others = {name: result for name, result in required.items() if isinstance(result, AnalysisResult)}
            if len(others) < len(required):
                return None
            selected = AnalysisImages(images.images, images.ids, self.batch_size)
            return benchmark.analyze(model, selected, self.plan.seed, others)
        if images is None:
            return PerImageResult([], PerImageScores.empty(), np.zeros((0, 1, 1, 3), np.uint8))
        source = None if job.source is None else self._load(job.source)
        labels = to_subset(images.labels, job.classes, model.model.num_classes)
        constants = self._constants(*self._constants_key(job, unit))
        batch = Batch(images.images, labels, images.ids, constants, source, unit.show)
        with (
            model.restrict_classes(job.classes),
            nullcontext() if source in (None, model) else source.restrict_classes(job.classes),
        ):
            scores = split_on_oom(lambda part: benchmark.evaluate(model, part, self.plan.seed), batch)
        samples = np.zeros((0, 1, 1, 3), np.uint8)
        if unit.show and scores.inputs is not None:
            shown = scores.inputs[:NUM_SAMPLES].clamp(0, 1) * 255
            samples = shown.round().byte().permute(0, 2, 3, 1).cpu().numpy()
        if job.classes is not None:
            indices = np.array(job.classes)
            scores = replace(scores, label=indices[scores.label], prediction=indices[scores.prediction])
        return PerImageResult(images.ids, replace(scores, inputs=None), samples, scores.notes)

    def _make_constants(
        self, number: int, image_set: int, classes: tuple[int, ...] | None, reference: tuple[int, ...]
    ) -> Constants:
        model = self._load(number)

        def load() -> tuple[Tensor, Tensor]:
            ((_, images),) = load_units([Unit(0, image_set, reference, "", 0)], self.plan.image_sets, 0, self.device)
            if isinstance(images, LoadFailure):
                raise images.error
            if images is None:
                raise UserError(f"none of {len(reference)} images can be read")
            if self._have_changed(image_set, reference, images):
                self._provisional.add((number, image_set, classes, reference))
            return images.images, to_subset(images.labels, classes, model.model.num_classes)

        return Constants(model, load)

    def _merge(
        self, number: int, job: Job, outputs: Mapping[str, PerImageResult | AnalysisResult | None]
    ) -> BenchmarkResult:
        """Join the results of a job's units, given those of all units by key."""
        benchmark = job.entry.benchmark
        result = BenchmarkResult(
            model=self.plan.models[job.model],
            name=job.entry.name,
            strength=job.entry.strength,
            condition=benchmark.condition,
            output=None,
            failure=job.failure or self._failures.get(number),
            corruption=benchmark.corruption_name if isinstance(benchmark, ImageBenchmark) else None,
            is_own_data=benchmark.data is None and job.classes is None,
            is_stored=benchmark.data is not None,
            class_names=self.plan.class_names[job.model] or (),
            weights=self.plan.digests[job.model],
        )
        if result.failure:
            return result
        parts = [outputs[key] for key in job.units]
        if isinstance(benchmark, Analysis):
            (analysis,) = parts
            if analysis is None:
                return replace(result, failure=f"{benchmark.requires} failed on another model")
            return replace(result, output=replace(analysis, notes=(*job.notes, *analysis.notes)))
        scored = [part for part in parts if isinstance(part, PerImageResult) and part.ids]
        ids = [image_id for part in scored for image_id in part.ids]
        if not ids:
            return replace(result, failure=f"none of the {len(job.positions):,} images can be read")
        scores = PerImageScores.concatenate([part.scores for part in scored])
        notes = dict.fromkeys([*job.notes, *(note for part in scored for note in part.notes)])
        if result.condition == "clean" and scores.top1.mean() <= 1 / len(result.class_names):
            notes["accuracy is at chance or below: is the head trained, and on classes in this order?"] = None
        if len(ids) < len(job.positions):
            selected = [self.plan.image_sets[job.image_set].ids[position] for position in job.positions]
            missing = sorted(set(selected).difference(ids))
            notes[f"{len(missing):,} of {len(selected):,} images cannot be read ({preview(missing)})"] = None
        return replace(result, output=PerImageResult(ids, scores, scored[0].sample_images, tuple(notes)))


def _is_damaged(images: ImageSet, index: int) -> bool:
    """Whether the file of an image can be opened, but not decoded."""
    try:
        images[index]
    except UnreadableImage:
        return images.load.fingerprint(index) != UNREADABLE
    return False


def to_subset(labels: Tensor, classes: tuple[int, ...] | None, num_classes: int) -> Tensor:
    """Labels as indices into the classes, PAD_LABEL for others; unchanged without classes."""
    if classes is None:
        return labels
    # The last entry maps PAD_LABEL (-1) to itself.
    positions = torch.full((num_classes + 1,), PAD_LABEL, device=labels.device)
    positions[list(classes)] = torch.arange(len(classes), device=labels.device)
    return positions[labels]
