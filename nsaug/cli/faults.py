"""What can stop a running command: signals, a full disk, lost processes. Each ends it with one line on stderr."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from nsaug.utils.errors import UserError, first_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLEAN_UP_SECONDS = 5.0
"""Further signals within this time are ignored: they would interrupt the clean-up after the first one."""


class Interrupted(KeyboardInterrupt):
    """A signal. It is a KeyboardInterrupt because libraries clean up after one.

    Args:
        number: of the signal.
        advice: what is kept, and how to continue.
    """

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__()
        self.number = number
        self.advice = advice


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM, unless the parent process ignores them, as nohup does.

    After a signal the handlers stay: a further one must not interrupt the end of the process.
    """
    last = -CLEAN_UP_SECONDS
    interrupted = False
    show_unraisable = sys.unraisablehook

    def ignore_ended_workers(unraisable: Any) -> None:
        """The signal may have reached data loading processes first, whose loaders then complain when they are freed."""
        if "DataLoader worker" not in str(unraisable.exc_value):
            show_unraisable(unraisable)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last, interrupted
        if signal.getsignal(number) is not handle:  # Lightning's handler calls this one, and ends training after a step
            return
        interrupted = True
        if time.monotonic() >= last + CLEAN_UP_SECONDS:
            last = time.monotonic()
            raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    replaced = {number: handler for number, handler in previous.items() if handler != signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, handle)
    sys.unraisablehook = ignore_ended_workers
    try:
        yield
    finally:
        sys.unraisablehook = show_unraisable
        if not interrupted:
            for number, handler in replaced.items():
                signal.signal(number, handler)


def exit_interrupted(error: KeyboardInterrupt) -> None:
    """Print one line, in the first process of a machine, and exit with 128 + the number of the signal."""
    error = as_interrupted(error)
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        name = "Ctrl-C" if error.number == signal.SIGINT else signal.Signals(error.number).name
        print(f"stopped by {name}" + (error.advice and f": {error.advice}"), file=sys.stderr)
    sys.exit(128 + error.number)


def as_interrupted(error: KeyboardInterrupt, advice: str = "") -> Interrupted:
    """The error with advice; a plain KeyboardInterrupt is SIGINT."""
    if isinstance(error, Interrupted):
        return Interrupted(error.number, error.advice or advice)
    return Interrupted(advice=advice)


@contextmanager
def one_line_faults(advice: Callable[[], str]) -> Iterator[None]:
    """Turn what can stop a command into one line.

    Args:
        advice: returns what is kept, and how to continue.

    Raises:
        Interrupted: a signal.
        UserError: a file cannot be read or written, or a process that loads images has died.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise as_interrupted(error, advice()) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise as_interrupted(error.__context__, advice()) from None  # Lightning exits after a KeyboardInterrupt
    except OSError as error:
        raise UserError(f"{first_line(error)}; {advice()}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if "signal: Terminated" in str(error):  # SIGTERM to all processes of the command, as `timeout` sends it
            raise Interrupted(signal.SIGTERM, advice()) from None
        raise UserError(
            f"a data loading process died ({first_line(error)}): if memory ran out, lower data.num_workers; {advice()}"
        ) from error


class _IgnoresWriteErrors(logging.Handler):
    """Drops messages that cannot be written: neither a full disk nor a closed pipe stops a command."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)  # of LogFile: opens the file

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class StreamLog(_IgnoresWriteErrors, logging.StreamHandler[Any]):
    """Messages on a stream."""


class LogFile(_IgnoresWriteErrors, logging.FileHandler):
    """Messages in a file."""


def flush_stdout() -> None:
    """Flush stdout; if that fails, discard the rest, so that Python does not report it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
