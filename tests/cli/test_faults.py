"""What stops a command is one line. scripts/fault_matrix.py runs the commands themselves, each in a process."""

import logging
import os
import signal
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from nsaug.cli import faults
from nsaug.cli.faults import Interrupted, LogFile, StreamLog, exit_interrupted, one_line_faults, raise_on_signals
from nsaug.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, "stopped by Ctrl-C: advice\n"), (signal.SIGTERM, "stopped by SIGTERM: advice\n")],
)
def test_signals_are_one_line_and_an_exit_code(number, line, capsys):
    with pytest.raises(Interrupted) as stop, raise_on_signals(), one_line_faults(lambda: "advice"):
        signal.raise_signal(number)
    with pytest.raises(SystemExit, match=str(128 + number)):
        exit_interrupted(stop.value)
    assert capsys.readouterr() == ("", line)


def test_other_processes_of_a_machine_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="130"):
        exit_interrupted(KeyboardInterrupt())
    assert capsys.readouterr() == ("", "")


def test_second_signal_does_not_interrupt_the_clean_up():
    cleaned = []

    def clean_up():
        signal.raise_signal(signal.SIGINT)
        cleaned.append(1)

    with pytest.raises(Interrupted), raise_on_signals(), closing(SimpleNamespace(close=clean_up)):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # nor the end of the process
    assert cleaned


def test_later_signal_interrupts_what_swallowed_the_first(monkeypatch):
    monkeypatch.setattr(faults, "CLEAN_UP_SECONDS", 0.01)
    with raise_on_signals():
        for _ in range(2):
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.02)


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup, or in the background of a script
    with raise_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_signal_that_lightning_handles_does_not_interrupt():
    with raise_on_signals():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda number, frame: ours(number, frame))
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a/b"), "[Errno 28] No space left on device: 'a/b'; advice"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a data loading process died (DataLoader worker (pid 7) is killed by signal: Killed. ): if memory ran out,"
            " lower data.num_workers; advice",
        ),
    ],
)
def test_faults_are_one_line(error, line):
    with pytest.raises(UserError) as caught, one_line_faults(lambda: "advice"):
        raise error
    assert str(caught.value) == line


def test_sigterm_that_reached_a_loading_process_first():
    """`timeout` sends it to all processes of a command."""
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    with pytest.raises(Interrupted) as stopped, one_line_faults(lambda: "advice"):
        raise error
    assert (stopped.value.number, stopped.value.advice) == (signal.SIGTERM, "advice")


class Loader:
    def __init__(self, message):
        self.message = message

    def __del__(self):
        raise RuntimeError(self.message)


def test_loaders_of_ended_processes_are_freed_in_silence(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(str(unraisable.exc_value)))
    with raise_on_signals():
        Loader("DataLoader worker (pid 7) is killed by signal: Terminated. ")
        Loader("something else")
    Loader("DataLoader worker (pid 8), after the command")
    assert shown == ["something else", "DataLoader worker (pid 8), after the command"]


def test_bugs_keep_their_traceback():
    with pytest.raises(RuntimeError, match="^bug$"), one_line_faults(lambda: "advice"):
        raise RuntimeError("bug")
    with pytest.raises(SystemExit, match="7"), one_line_faults(lambda: "advice"):
        sys.exit(7)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_messages_that_cannot_be_written_are_dropped(tmp_path, monkeypatch, capsys):
    log = logging.getLogger("test_faults")
    log.propagate = False
    full, missing = LogFile("/dev/full"), LogFile(tmp_path / "missing" / "file.log", delay=True)
    monkeypatch.setattr(log, "handlers", [StreamLog(full.stream), full, missing])
    log.warning("message")
    assert capsys.readouterr() == ("", "")
    log.warning("%d", "a bug in a message is shown")
    assert "a bug in a message is shown" in capsys.readouterr().err
