import logging
import time
from types import SimpleNamespace

import pytest

from nsaug.evaluation import progress
from nsaug.utils.text import format_duration


def test_lines_without_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    workers = SimpleNamespace(progress=0, is_first=True)
    with progress.show_progress(200, workers):
        time.sleep(0.05)
        workers.progress = 199
        while "done, about" not in caplog.text:
            time.sleep(0.01)
    assert caplog.messages[0] == "evaluating: the first block is not done yet"
    assert caplog.messages[-1] == "evaluating: 99 % done, about 0 s left", "not 100"


def test_other_processes_are_silent(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    with progress.show_progress(200, SimpleNamespace(progress=0, is_first=False)):
        time.sleep(0.05)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (5300, "88 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
