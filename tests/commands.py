"""Run train.py and evaluate.py as a user does, in this process."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

FAST = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "logger=csv",
    "logger.num_images=0",
    "val_attack_batches=1",
]
SHORT = [*FAST, "trainer.max_steps=3"]


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__.split('.')[-1]}.py", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])  # an entry point appends the current folder
    script.main()


def cli_error(script, monkeypatch, capsys, *arguments):
    """The only line on stderr of a command that fails with exit code 1."""
    with pytest.raises(SystemExit) as stop:
        run(script, monkeypatch, *arguments)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def top1(folder):
    return [row["value"] for row in json.loads((folder / "results.json").read_text()) if row["metric"] == "top1"]


def hold_lock(folder, purpose):
    """Start a process that holds the lock of a folder, and a child of it that was forked and outlives it."""
    code = """
import os, sys, time
from pathlib import Path
from nsaug.utils.files import lock_folder
with lock_folder(Path(sys.argv[1]), sys.argv[2]):
    if os.fork():
        print("locked", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(folder), purpose]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "locked\n"
    return process
