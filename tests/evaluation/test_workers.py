"""Several processes on one evaluation: the same tables as one process, also after kills."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from nsaug.cli import train
from nsaug.evaluation import Workers, parse_shard
from nsaug.utils.errors import UserError
from tests.commands import FAST, run
from tests.conftest import ROOT

TABLES = ("results.csv", "groups.csv", "comparisons.csv", "results.md", "results.json")
NUM_KILLS = 20


def test_one_process_takes_all_numbers():
    workers = Workers("cpu", 1, 1)
    assert (workers.size, workers.local_size, workers.is_first, workers.device.type) == (1, 1, True, "cpu")
    workers.start()
    assert workers.broadcast("plan") == "plan"
    assert list(workers.take(3)) == [0, 1, 2]
    workers.finish()


def test_numbers_of_processes_come_from_torchrun(monkeypatch):
    environment = {
        "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "RANK": "3",
        "GROUP_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it for the whole process
    workers = Workers("cpu", 1, 1)
    assert (workers.size, workers.local_size, workers.is_first) == (6, 2, False)


@pytest.mark.parametrize(("accelerator", "devices"), [("tpu", 1), ("quantum", 1), ("cpu", "all")])
def test_devices_that_are_not_there(accelerator, devices):
    with pytest.raises(UserError, match=f"accelerator={accelerator} devices={devices} cannot be used"):
        Workers(accelerator, devices, 1)


def test_process_without_the_first_one_ends_silently(monkeypatch):
    class Lost:
        def add(self, counter, amount):
            raise DistError("connection lost")

    workers = Workers("cpu", 1, 1)
    monkeypatch.setattr(workers, "_store", Lost())
    with pytest.raises(DistError):
        list(workers.take(3))
    workers.is_first = False
    with pytest.raises(SystemExit, match="1"):
        list(workers.take(3))


def test_shards():
    assert parse_shard(None) == (0, 1)
    assert parse_shard("3/8") == (3, 8)
    for wrong in ("8/8", "1/0", "a/8", "-1/8", "3", 3, "", "1/2/3"):
        with pytest.raises(UserError, match="type shard=INDEX/COUNT"):
            parse_shard(wrong)


@pytest.fixture
def evaluation(monkeypatch, tmp_path):
    """Starts evaluate.py on two small runs in a process of its own; returns it."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        run(train, monkeypatch, *FAST, "trainer.max_epochs=1", f"seed={seed}", f"hydra.run.dir={tmp_path}/run/{seed}")

    def start(name, *arguments, launcher=(), cache=None):
        command = [
            sys.executable, *launcher, str(ROOT / "evaluate.py"), f"checkpoint={tmp_path}/run/*", "suite=demo",
            "accelerator=cpu", "batch_size=32", f"hydra.run.dir={tmp_path}/{name}",
            f"cache={tmp_path}/{cache or name}_cache", *arguments,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # sums depend on the threads
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **options)

    return start


def finish(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def assert_same_tables(tmp_path, first, second):
    for name in TABLES:
        assert (tmp_path / first / name).read_bytes() == (tmp_path / second / name).read_bytes(), name


@pytest.mark.slow
def test_processes_and_shards_agree_with_one_process(evaluation, tmp_path):
    finish(evaluation("one"))
    for count in (2, 3):
        output = finish(evaluation(f"devices{count}", f"devices={count}"))
        assert output.count("top-1 in %") == 1, "only the first process reports"
        assert_same_tables(tmp_path, "one", f"devices{count}")
    port = random.Random(os.getpid()).randint(20000, 40000)
    nodes = [
        evaluation(
            "nodes", cache="nodes", launcher=["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
            "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"],
        )
        for rank in range(2)
    ]  # fmt: skip
    for node in nodes:
        finish(node)
    assert_same_tables(tmp_path, "one", "nodes")
    for shard in (2, 0, 1):
        finish(evaluation(f"shard{shard}", f"shard={shard}/3", cache="shards"))
    finish(evaluation("shards"))
    assert_same_tables(tmp_path, "one", "shards")


@pytest.mark.slow
def test_sigterm_of_the_first_process_ends_all_in_one_line(evaluation, tmp_path):
    process = evaluation("stopped", "devices=2", "suite.attacks.pgd.num_steps=100")
    while process.poll() is None and not list((tmp_path / "stopped_cache").rglob("[!.]*.npz")):
        time.sleep(0.05)
    process.terminate()
    output = process.communicate()[0]  # stdout and stderr of both, until both have ended
    assert process.returncode == 128 + signal.SIGTERM
    cache = tmp_path / "stopped_cache"
    line = f"stopped by SIGTERM: finished blocks are in {cache}; type the same command to continue"
    assert output.splitlines()[-1] == line, "the last line, also of the other process"


@pytest.mark.slow
def test_killed_workers_cost_their_block_only(evaluation, tmp_path, capsys):
    """Random SIGKILLs of one of two processes; Lightning then ends the other, and the same command continues."""
    start = time.monotonic()
    finish(evaluation("one", "devices=2"))
    duration = time.monotonic() - start

    def cached(name):
        return list((tmp_path / f"{name}_cache").rglob("[!.]*.npz"))

    rng, kills, counts = random.Random(0), 0, []
    while kills < NUM_KILLS:
        if len(cached("killed")) == len(cached("one")):  # a kill should come while there is work
            for path in cached("killed"):
                if rng.random() < 0.8:
                    path.unlink()
        process = evaluation("killed", "devices=2")
        try:
            process.communicate(timeout=rng.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            children = [int(pid) for pid in os.popen(f"pgrep -P {process.pid}").read().split()]
            os.kill(rng.choice([process.pid, *children]), signal.SIGKILL)
            process.communicate()
            kills += 1
        counts.append(len(cached("killed")))
    finish(evaluation("killed", "devices=2"))
    assert_same_tables(tmp_path, "one", "killed")
    with capsys.disabled():
        print(f"\n{kills} kills within {duration:.0f} s each; cached blocks after each start: {counts}")
