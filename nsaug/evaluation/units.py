"""Units of work: one model, one benchmark at one strength, one block of images.

A unit's result depends on nothing else, so that units can be computed in any order, by any number of processes, and
before or after an interruption.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nsaug.data import TestDataset
from nsaug.data.dataset import ImageSet
from nsaug.data.fingerprints import UNREADABLE
from nsaug.data.names import compare_class_order, wnids
from nsaug.evaluation.analyses import Analysis
from nsaug.evaluation.benchmarks import ImageBenchmark
from nsaug.evaluation.models import EvalModel, model_digest
from nsaug.evaluation.results import format_strength
from nsaug.evaluation.subset import Subset
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, log_failure
from nsaug.utils.text import preview

log = logging.getLogger(__name__)

NUM_SAMPLES = 6
"""Number of sample images of a benchmark in the report, the first ones of its first block."""
EXPENSIVE = 100
"""Forward passes per image from which a benchmark has smaller blocks, none of which is taken in advance."""
EXPENSIVE_FRACTION = 8
"""Divisor of the block size of expensive benchmarks, so that many processes can share them."""
NUM_REFERENCE_IMAGES = 64
"""Number of images on which constants of a model and a data set, such as rms(u), are measured."""


@dataclass(frozen=True)
class Entry:
    """A benchmark or analysis at one strength, and its name in the suite."""

    name: str
    benchmark: ImageBenchmark | Analysis
    strength: float | None = None

    @property
    def title(self) -> str:
        """Name and strength."""
        if self.strength is None:
            return self.name
        return f"{self.name} {format_strength(self.strength, self.benchmark.condition)}"


@dataclass(frozen=True)
class Unit:
    """One unit of work; numbers are indices into the lists of a `Plan`.

    Attributes:
        job: number of the job it is a part of.
        image_set: number of the set that its images are in.
        positions: of its images in that set.
        key: digest of everything that its result depends on.
        cost: approximate cost, to start expensive units first and to show progress.
        show: whether it keeps sample images.
        expensive: whether the next unit is taken only when this one is done.
    """

    job: int
    image_set: int
    positions: tuple[int, ...]
    key: str
    cost: int
    show: bool = False
    expensive: bool = False


@dataclass(frozen=True)
class Job:
    """One model on one benchmark at one strength, on all selected images.

    Attributes:
        model: number of the model.
        entry: the benchmark and its name; for transferred attacks with the name of the source.
        source: number of the model to attack, if it is another one.
        image_set: number of the set that its images are in.
        positions: of its images in that set.
        classes: class indices to restrict predictions to; None for all.
        reference: positions of the images on which constants are measured.
        required: keys of the required results on other models, by their names.
        notes: remarks on the images.
        failure: why it cannot run.
        units: keys of its units, in the order of the images.
    """

    model: int
    entry: Entry
    source: int | None = None
    image_set: int = 0
    positions: tuple[int, ...] = ()
    classes: tuple[int, ...] | None = None
    reference: tuple[int, ...] = ()
    required: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failure: str | None = None
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything there is to do, as picklable data.

    Attributes:
        models: the models.
        class_names: of every model, by class index; None if it could not be loaded.
        digests: of every model's weights; empty if it could not be loaded.
        jobs: all jobs, in the order of the report.
        image_sets: images with the transform of a model.
        units: all units, the most expensive first, those that require other results last.
        seed: seed of all random draws.
        unreadable: (image set, position) of images that could not be opened; the keys of their units say so.
    """

    models: Sequence[EvalModel]
    class_names: Sequence[list[str] | None]
    digests: Sequence[str]
    jobs: Sequence[Job]
    image_sets: Sequence[ImageSet]
    units: Sequence[Unit]
    seed: int
    unreadable: frozenset[tuple[int, int]] = frozenset()


Loaded = tuple[NoisyViT, TestDataset]


class Planner:
    """Builds a plan.

    Args:
        models: the models.
        entries: the suite.
        load: returns a model on its device and its data.
        subset: selects the images; its seed is the seed of all random draws.
        block_size: number of images of a unit.
    """

    def __init__(
        self,
        models: Sequence[EvalModel],
        entries: Sequence[Entry],
        load: Callable[[EvalModel], Loaded],
        subset: Subset,
        block_size: int,
    ) -> None:
        self.models = models
        self.entries = entries
        self.load = load
        self.subset = subset
        self.block_size = block_size
        self._image_sets: dict[Any, tuple[int, ImageSet, list[str]]] = {}
        self._selections: dict[Any, tuple[tuple[int, ...], list[str], tuple[int, ...]]] = {}
        self._fingerprints: dict[tuple[int, int], str] = {}
        self._block_digests: dict[tuple[int, tuple[int, ...]], str] = {}
        self._units: list[tuple[int, Unit]] = []
        self._jobs: list[Job] = []
        self._analysis_keys: dict[tuple[str, str], str] = {}
        self._digests: dict[int, str] = {}
        self._class_names: list[list[str] | None] = [None] * len(models)

    def build(self) -> Plan:
        """Build the plan; a model or benchmark that fails becomes a job with a failure."""
        is_transfer = [bool(getattr(entry.benchmark, "transfer", False)) for entry in self.entries]
        white_box = [entry for entry, transfer in zip(self.entries, is_transfer, strict=True) if not transfer]
        transfers = [entry for entry, transfer in zip(self.entries, is_transfer, strict=True) if transfer]
        for number in range(len(self.models)):
            self._add_model(number, [entry for entry in white_box if not self._requires(entry)])
        sources = {model.name: number for number, model in reversed(list(enumerate(self.models)))}
        if len(sources) > 1:
            requiring = [entry for entry in white_box if self._requires(entry)]
            for number, model in enumerate(self.models):
                if requiring or transfers:
                    others = [source for name, source in reversed(sources.items()) if name != model.name]
                    named = [
                        (replace(entry, name=f"{entry.name} from {self.models[source].name}"), source)
                        for source in others
                        for entry in transfers
                    ]
                    self._add_model(number, requiring, named)
        ranked = sorted(self._units, key=lambda item: (item[0], -item[1].cost, self._jobs[item[1].job].model))
        image_sets = [images for _, images, _ in self._image_sets.values()]
        digests = [self._digests.get(number, "") for number in range(len(self.models))]
        units = [unit for _, unit in ranked]
        unreadable = frozenset(
            image for image, text in self._fingerprints.items() if text.rpartition("\0")[2] == UNREADABLE
        )
        return Plan(
            self.models, self._class_names, digests, self._jobs, image_sets, units, self.subset.seed, unreadable
        )

    @staticmethod
    def _requires(entry: Entry) -> str | None:
        return entry.benchmark.requires if isinstance(entry.benchmark, Analysis) else None

    def _add_model(self, number: int, entries: Sequence[Entry], transfers: Sequence[tuple[Entry, int]] = ()) -> None:
        model = self.models[number]
        items = [*((entry, None) for entry in entries), *transfers]
        try:
            vit, data = self.load(model)
            self._digests.setdefault(number, model_digest(vit, model.fingerprint))
            self._class_names[number] = data.class_names
        except Exception as error:
            reason = log_failure(log, model.label, error)
            self._jobs += [Job(number, entry, source, failure=reason) for entry, source in items]
            return
        for entry, source in items:
            try:
                if source is not None and source not in self._digests:
                    other = self.models[source]
                    self._digests[source] = model_digest(self.load(other)[0], other.fingerprint)
                self._add_job(number, vit, data, entry, source)
            except Exception as error:
                reason = log_failure(log, f"{model.label}: {entry.title}", error)
                self._jobs.append(Job(number, entry, source, failure=reason))

    def _add_job(self, number: int, vit: NoisyViT, data: TestDataset, entry: Entry, source: int | None) -> None:
        benchmark, model = entry.benchmark, self.models[number]
        is_analysis = isinstance(benchmark, Analysis)
        classes = benchmark.class_subset(data)
        set_number, images, data_notes = self._image_set(benchmark.data or data, vit)
        positions, subset_notes, reference = self._select(images, set_number, classes, benchmark.data is None)
        required: dict[str, str] = {}
        if isinstance(benchmark, Analysis):
            positions = positions[: benchmark.num_images]
            if len(positions) < 2:
                raise UserError("an analysis needs at least two images: one to learn noise on, one to evaluate it")
            required = self._required(entry, model)
        depends_on = {
            "weights": self._digests[number],
            "source": None if source is None else self._digests[source],
            "settings": benchmark.settings,
            "classes": classes,
            "seed": self.subset.seed,
            "device": vit.mean.device.type,
            "required": required,
            "batch_size": self.block_size if is_analysis else None,  # noise is learned batch by batch
            # rms(u) and the check for masked gradients
            "reference": None if is_analysis else self._block_digest(set_number, reference),
        }
        expensive = is_analysis or benchmark.cost(1) >= EXPENSIVE
        size = len(positions) if is_analysis else block_size(self.block_size, expensive)
        weight = sum(parameter.numel() for parameter in vit.parameters())
        keys = []
        for start in range(0, len(positions), size):
            block = positions[start : start + size]
            show = start == 0 and not is_analysis
            key = _digest(depends_on | {"images": self._block_digest(set_number, block), "show": show})
            cost = benchmark.cost(len(block)) * weight
            unit = Unit(len(self._jobs), set_number, block, key, cost, show, expensive)
            self._units.append((1 if required else 0, unit))
            keys.append(key)
        if is_analysis:
            self._analysis_keys.setdefault((entry.name, model.name), keys[0])
        job = Job(
            model=number,
            entry=entry,
            source=source,
            image_set=set_number,
            positions=positions,
            classes=None if classes is None else tuple(classes),
            reference=reference,
            required=required,
            notes=(*benchmark.notes, *self._class_notes(model, data), *data_notes, *subset_notes),
            units=tuple(keys),
        )
        self._jobs.append(job)

    @staticmethod
    def _class_notes(model: EvalModel, data: TestDataset) -> list[str]:
        """The assumption about the order of classes where the weights do not name them; ImageNet has one order."""
        names = model.class_names
        if names is None:
            if data.class_names == wnids():
                return []
            return [f"the weights name no classes: the order of classes {preview(data.class_names)} is assumed"]
        if compare_class_order(names, data.class_names) == "same":
            return []
        return [
            f"the classes of the weights ({preview(names)}) and of the data ({preview(data.class_names)}) have other"
            " names: the same order is assumed"
        ]

    def _required(self, entry: Entry, model: EvalModel) -> dict[str, str]:
        """Keys of the required results on other models, by their names; of one name only the first model counts."""
        name = self._requires(entry)
        return {
            other: key
            for (analysis, other), key in self._analysis_keys.items()
            if analysis == name and other != model.name
        }

    def _image_set(self, data: TestDataset, vit: NoisyViT) -> tuple[int, ImageSet, list[str]]:
        """Number, images with the transform of a model, and notes of a data set."""
        key = id(data), json.dumps(vit.data_config, sort_keys=True, default=str)
        if key not in self._image_sets:
            data.setup("test")
            data.configure(vit.data_config)
            self._image_sets[key] = len(self._image_sets), replace(data.images), list(data.notes)
        return self._image_sets[key]

    def _select(
        self, images: ImageSet, number: int, classes: list[int] | None, require_match: bool
    ) -> tuple[tuple[int, ...], list[str], tuple[int, ...]]:
        """Positions and notes of the selected images, and positions of the reference images."""
        key = number, tuple(classes or ())
        if key not in self._selections:
            positions, notes = self.subset.select(images, classes, require_match)
            reference, _ = Subset(max_images=NUM_REFERENCE_IMAGES).select(images, classes)
            self._hash_images(images, number, {*positions, *reference})
            self._selections[key] = tuple(positions), notes, tuple(reference)
        return self._selections[key]

    def _hash_images(self, images: ImageSet, number: int, positions: Iterable[int]) -> None:
        missing = [position for position in positions if (number, position) not in self._fingerprints]
        for position, text in zip(missing, images.subset(missing).fingerprints(), strict=True):
            self._fingerprints[number, position] = text

    def _block_digest(self, number: int, positions: tuple[int, ...]) -> str:
        block = number, positions
        if block not in self._block_digests:
            self._block_digests[block] = _digest([self._fingerprints[number, position] for position in positions])
        return self._block_digests[block]


def block_size(batch_size: int, expensive: bool) -> int:
    """Number of images of a unit."""
    return max(1, batch_size // EXPENSIVE_FRACTION) if expensive else batch_size


def _digest(value: Any) -> str:
    """SHA-256 of the JSON form of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
