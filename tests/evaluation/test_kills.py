"""evaluate.py killed with SIGKILL at random moments: reruns resume from the cache and give the same tables."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from nsaug.cli import train
from tests.commands import FAST, run
from tests.conftest import ROOT

KILLS = 10


def start_evaluation(folder, *args):
    command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={folder}", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def count_cached(folder):
    return len(list(folder.rglob("[!.]*.npz")))


@pytest.mark.slow
def test_killed_evaluation_resumes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        run(train, monkeypatch, *FAST, "trainer.max_epochs=1", f"seed={seed}", f"hydra.run.dir={tmp_path}/run/{seed}")
    args = [f"checkpoint={tmp_path}/run/*", "suite=demo", "accelerator=cpu", "batch_size=32"]

    start = time.monotonic()
    uninterrupted = start_evaluation(tmp_path / "uninterrupted", *args, f"cache={tmp_path}/uninterrupted_cache")
    assert "report.html" in uninterrupted.communicate()[0]
    duration = time.monotonic() - start
    total = count_cached(tmp_path / "uninterrupted_cache")

    rng, cached, kills = random.Random(0), [], 0
    while kills < KILLS:  # the delay is short enough to leave work for the next run
        process = start_evaluation(tmp_path / "killed", *args, f"cache={tmp_path}/cache")
        try:
            process.communicate(timeout=rng.uniform(0.3, 0.6) * duration)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            break
        cached.append(count_cached(tmp_path / "cache"))
    last = start_evaluation(tmp_path / "killed", *args, f"cache={tmp_path}/cache")
    assert "report.html" in last.communicate()[0]
    assert last.returncode == 0
    assert cached == sorted(cached), "no finished result is lost"
    assert count_cached(tmp_path / "cache") == total, "no result is computed twice"
    for name in ("results.csv", "groups.csv", "comparisons.csv", "results.md"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "uninterrupted" / name).read_text(), name
    with capsys.disabled():
        print(f"\n{kills} kills within {duration:.0f} s each; cached benchmarks after each kill: {cached} of {total}")
