"""The fuzzer of the commands: how it classifies, and a run of it."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from scripts import fuzz_cli
from tests.conftest import ROOT


def fail(*lines, code=1):
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(code)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda: None, "accepted"),
        (lambda: print("done"), "accepted"),
        (lambda: fail("a warning", code=0), "accepted"),
        (lambda: fail("error: seed=x"), "one line"),
        (lambda: sys.exit("error: seed=x"), "one line"),
        (lambda: fail("UserWarning: x", "error: seed=x"), "several lines"),
        (lambda: fail("error: a", "b"), "several lines"),
        (lambda: 1 / 0, "traceback"),
        (lambda: fail("error: internal error: KeyError: 'x'; please report it"), "internal error"),
        (lambda: time.sleep(30), "hang"),
        (lambda: fail("error: seed=x", code=0), "wrong exit code"),
        (lambda: fail("error: seed=x", code=2), "wrong exit code"),
        (lambda: fail(), "wrong exit code"),
        (kill, "wrong exit code"),
    ],
)
def test_kinds(tmp_path, function, kind):
    (tmp_path / "own").mkdir()
    outcome = fuzz_cli.classify(function, tmp_path / "own", limit=1 if kind == "hang" else 20)
    assert outcome.kind == kind, outcome.output
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_draws_depend_on_the_seed_alone():
    draws = [fuzz_cli.draw(random.Random(f"0/{number}")) for number in range(10)]
    assert draws == [fuzz_cli.draw(random.Random(f"0/{number}")) for number in range(10)]
    assert draws != [fuzz_cli.draw(random.Random(f"1/{number}")) for number in range(10)]
    assert {command.script for command in draws} == {"train", "evaluate"}


def test_groups_have_one_order_in_all_processes():
    """The order of a set of strings differs between them."""
    assert list(fuzz_cli.groups()) == sorted(fuzz_cli.groups())


@pytest.mark.parametrize("kind", fuzz_cli.FILE_DAMAGE)
def test_damaged_files_differ(tmp_path, kind):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "config.json"
    path.write_text('{"a": [1, 2], "b": {"c": "text"}}')
    fuzz_cli.damage(tmp_path, fuzz_cli.Command("train", [], ("run/config.json", kind), "0"))
    assert not path.is_file() or path.read_text(errors="replace") != '{"a": [1, 2], "b": {"c": "text"}}'


@pytest.mark.parametrize("kind", fuzz_cli.CONTENT_DAMAGE)
def test_changed_values_differ(kind):
    value = {"a": [1, 2], "b": {"c": "text"}}
    for seed in range(20):
        assert repr(fuzz_cli.change(value, kind, random.Random(seed))) != repr(value)
    assert value == {"a": [1, 2], "b": {"c": "text"}}


@pytest.mark.slow
def test_all_errors_are_one_line():
    command = [sys.executable, "scripts/fuzz_cli.py", "--seed", "0", "--count", "300"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
