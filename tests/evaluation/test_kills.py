"""evaluate.py under SIGKILL at random moments: it takes up where it was and ends with the same table."""

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


def evaluation(folder, *more):
    command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={folder}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_ten_kills(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        run(train, monkeypatch, *FAST, "trainer.max_epochs=1", f"seed={seed}", f"hydra.run.dir={tmp_path}/run/{seed}")
    told = [f"checkpoint={tmp_path}/run/*", "suite=demo", "device=cpu"]

    start = time.monotonic()
    whole = evaluation(tmp_path / "whole", *told, f"store={tmp_path}/whole_store")
    assert "report.html" in whole.communicate()[0]
    duration = time.monotonic() - start
    finished = len(list((tmp_path / "whole_store").rglob("*.npz")))

    moments, kept, kills = random.Random(0), [], 0
    while kills < KILLS:  # early enough that each finds work undone
        process = evaluation(tmp_path / "killed", *told, f"store={tmp_path}/store")
        try:
            process.communicate(timeout=moments.uniform(0.3, 0.6) * duration)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            break
        kept.append(len(list((tmp_path / "store").rglob("[!.]*.npz"))))
    last = evaluation(tmp_path / "killed", *told, f"store={tmp_path}/store")
    assert "report.html" in last.communicate()[0]
    assert last.returncode == 0
    assert kept == sorted(kept), "nothing that was finished is lost"
    assert len(list((tmp_path / "store").rglob("[!.]*.npz"))) == finished, "and nothing is done twice"
    for name in ("results.csv", "groups.csv", "comparisons.csv", "results.md"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    with capsys.disabled():
        print(f"\n{kills} kills within {duration:.0f} s each; benchmarks on disk after each: {kept} of {finished}")
