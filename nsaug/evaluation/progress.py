"""Progress of an evaluation: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from nsaug.evaluation.units import Unit
from nsaug.utils.text import LINE_SECONDS, format_duration

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5


class Counter(Protocol):
    """Counts the cost of the units that are done; `is_first`: whether this process shows it."""

    @property
    def is_first(self) -> bool: ...
    @property
    def progress(self) -> int: ...


@dataclass
class SingleProcess:
    """The counter of an evaluation in this process alone; `Workers` is that of several processes."""

    progress: int = 0
    is_first: bool = True

    def add_progress(self, unit: Unit) -> None:
        """Count a finished unit."""
        self.progress += unit.cost


@contextmanager
def show_progress(total: int, workers: Counter) -> Iterator[None]:
    """Show progress and the time left while the context is open, in the first process.

    Args:
        total: cost of all units.
        workers: the processes, which count what is done.
    """
    stop = threading.Event()
    target = _show_bar if sys.stdout.isatty() else _log_lines
    thread = threading.Thread(target=target, args=(total, workers, stop), daemon=True)
    if workers.is_first:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if workers.is_first:
            thread.join()


def _show_bar(total: int, workers: Counter, stop: threading.Event) -> None:
    columns = TextColumn("evaluating"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=total)
        while not stop.wait(REFRESH_SECONDS):
            progress.update(task, completed=workers.progress)


def _log_lines(total: int, workers: Counter, stop: threading.Event) -> None:
    start = time.monotonic()
    while not stop.wait(LINE_SECONDS):
        if share := min(1.0, workers.progress / max(1, total)):
            left = format_duration((time.monotonic() - start) * (1 - share) / share)
            log.info("evaluating: %d %% done, about %s left", 100 * share, left)  # 99.6 is not 100
        else:
            log.info("evaluating: the first block is not done yet")
