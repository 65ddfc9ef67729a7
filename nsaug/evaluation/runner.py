"""Runs a suite: every subject on every benchmark, with what is already known taken from the store."""

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsaug.evaluation.benchmark import Benchmark, subset
from nsaug.evaluation.store import Identity, Result, Store, model_digest
from nsaug.evaluation.subjects import Subject
from nsaug.settings import NsaugError, first_line
from nsaug.vit import ViT

if TYPE_CHECKING:
    from nsaug.data import ImageData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A benchmark as its suite tells it.

    Attributes:
        name: its key in the suite.
        benchmark: what it is.
    """

    name: str
    benchmark: Benchmark


@dataclass(frozen=True)
class Outcome:
    """One subject on one benchmark: a result, or why there is none."""

    subject: Subject
    entry: Entry
    result: Result | None
    failure: str | None = None


def run_suite(
    subjects: list[Subject],
    entries: list[Entry],
    opened: "Callable[[Subject], tuple[ViT, ImageData]]",
    store: Store,
    seed: int,
    max_images: int | None,
    advance: Callable[[str, int], None],
) -> Iterator[Outcome]:
    """Judges, or finds in the store; yields each outcome once its result is on disk.

    A benchmark that fails is reported, with a traceback in the log file, and the others go on.

    Args:
        opened: gives a subject's model, on the device to work on, and its data, prepared for it.
        advance: called with what is being done and the number of forwards (`Benchmark.forwards` for each image) that
            were done or need not be.
    """
    for subject in subjects:
        try:
            vit, data = opened(subject)
            images = subset(data.test_images, max_images, seed)
            common = {"weights": model_digest(vit), "data": images.digest(), "classes": data.class_names, "seed": seed}
            common["device"] = vit.mean.device.type
        except Exception as error:
            failure = _reported(error, subject.label)
            for entry in entries:
                yield Outcome(subject, entry, None, failure)
            continue
        loader = data.loader(images)
        where = str(Path(subject.checkpoint).resolve()) if subject.checkpoint else subject.name
        for entry in entries:
            title = f"{subject.label}: {entry.name}"
            work, forwards = len(images) * entry.benchmark.forwards, entry.benchmark.forwards
            identity = Identity(where, entry.name, common | {"settings": entry.benchmark.settings})
            result = store.find(identity)
            if result is not None:
                advance(title, work)
                yield Outcome(subject, entry, result)
                continue
            if changed := store.changed(identity):
                log.info("%s is judged anew: changed since it was last are its %s", title, " and ".join(changed))

            def judged(count: int, title: str = title, forwards: int = forwards) -> None:
                advance(title, count * forwards)

            judged(0)
            try:
                result = entry.benchmark.run(vit, loader, seed, judged)
            except Exception as error:
                yield Outcome(subject, entry, None, _reported(error, title))
                continue
            store.keep(identity, result)
            yield Outcome(subject, entry, result)


def _reported(error: Exception, title: str) -> str:
    reason = str(error) if isinstance(error, NsaugError) else f"{type(error).__name__}: {first_line(error)}"
    log.error("%s failed: %s", title, reason)
    if not isinstance(error, NsaugError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    return reason
