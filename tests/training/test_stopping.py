"""Signals stop a run after a step; on Slurm they requeue its job. test_resume.py has several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop

from nsaug.cli import train
from nsaug.training.lightning_module import Finetuner
from nsaug.training.stopping import Stopped, StopSignals
from scripts.fault_injection import difference
from tests.commands import FAST, run
from tests.conftest import ROOT
from tests.training.ranks import signal_at

pytestmark = pytest.mark.usefixtures("tmp_cwd", "signal_handlers")


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """A file to which a stand-in for Slurm's command writes its arguments; and a function that makes it fail."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(*lines):
        (folder / "scontrol").write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {folder}/log', *lines, ""]))
        (folder / "scontrol").chmod(0o755)

    write()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    return folder / "log", lambda text: write(f"echo {text} >&2", "exit 1")


def stop(monkeypatch, capsys, number, *settings):
    """The line and the exit code of a run that gets a signal in its tenth step, with its data loading processes."""
    step, done = Finetuner.training_step, []

    def signalled(self, *rest):
        done.append(1)
        if len(done) == 10:
            for process in multiprocessing.active_children():
                os.kill(process.pid, number)
            signal.raise_signal(number)
        return step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Finetuner, "training_step", signalled)
        with pytest.raises(SystemExit) as stopped:
            run(train, monkeypatch, *FAST, "method=clean", "trainer.max_epochs=1", *settings)
    (line,) = capsys.readouterr().err.splitlines()
    return line, stopped.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_step_is_finished_and_saved(monkeypatch, tmp_path, capsys, number):
    before = signal.getsignal(signal.SIGUSR1)
    settings = [*FAST, "method=clean", "trainer.max_epochs=1"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/whole")
    line, code = stop(monkeypatch, capsys, number, f"hydra.run.dir={tmp_path}/broken")
    advice = f"type python train.py resume={tmp_path}/broken to continue"
    assert (line, code) == (f"stopped by {signal.Signals(number).name}: {advice}", 128 + number)
    assert torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)["global_step"] == 10
    run(train, monkeypatch, f"resume={tmp_path}/broken/last.ckpt")
    assert difference(tmp_path / "whole", tmp_path / "broken") == ""
    assert signal.getsignal(signal.SIGUSR1) == before


def test_workers_survive_the_signal_of_slurm(monkeypatch, tmp_path, capsys):
    stop(monkeypatch, capsys, signal.SIGUSR1, "data.num_workers=1", f"hydra.run.dir={tmp_path}/run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 10


def test_accumulated_step_is_finished(monkeypatch, tmp_path, capsys):
    """The tenth batch is in the middle of the third step of four batches."""
    settings = ["trainer.accumulate_grad_batches=4", f"hydra.run.dir={tmp_path}/run"]
    stop(monkeypatch, capsys, signal.SIGTERM, *settings)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_validation_stops_at_once(monkeypatch, tmp_path, capsys):
    validate = Finetuner.validation_step

    def signalled(self, *rest):
        signal.raise_signal(signal.SIGUSR1)
        return validate(self, *rest)

    monkeypatch.setattr(Finetuner, "validation_step", signalled)
    settings = [*FAST, "method=clean", "trainer.max_epochs=1", "checkpoint_every_n_steps=7", "data.batch_size=64"]
    with pytest.raises(SystemExit) as stopped:
        run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/run")
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 14


def test_sigterm_before_the_first_step(monkeypatch, tmp_path, capsys):
    """Lightning's handler gets it."""
    reset = _FitLoop.reset

    def signalled(self):
        signal.raise_signal(signal.SIGTERM)
        return reset(self)

    monkeypatch.setattr(_FitLoop, "reset", signalled)
    with pytest.raises(SystemExit) as stopped:
        run(train, monkeypatch, *FAST, "method=clean", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    assert stopped.value.code == 128 + signal.SIGTERM
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped by SIGTERM: ")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")
def test_submitit_that_requeues_no_more_is_one_line(monkeypatch):
    def refuse(number, frame):
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    previous = signal.signal(signal.SIGUSR2, refuse)
    try:
        signals = StopSignals(requeue=True)
        signals.prepare()
    finally:
        signal.signal(signal.SIGUSR2, previous)
    with pytest.raises(Stopped) as stopped:
        signals.stop(SimpleNamespace(is_global_zero=True), signal.SIGUSR2)
    assert stopped.value.advice == (
        "not requeued (Job not requeued because: timed-out too many times.): allow more by"
        " hydra.launcher.max_num_timeout=10"
    )


def advice(requeue, number=signal.SIGUSR1, is_global_zero=True):
    with pytest.raises(Stopped) as stopped:
        StopSignals(requeue).stop(SimpleNamespace(is_global_zero=is_global_zero), number)
    assert stopped.value.number == number
    return stopped.value.advice


def test_slurm_job_is_requeued_if_its_command_resumes(monkeypatch, scontrol):
    log, _ = scontrol
    assert advice(requeue=False) == ""
    assert advice(requeue=True, is_global_zero=False) == ""
    assert advice(requeue=True, number=signal.SIGTERM) == "", "Slurm itself requeues a preempted job"
    assert not log.exists()
    assert advice(requeue=True) == "Slurm job 1234 is requeued and resumes the run"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1200")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "34")
    assert advice(requeue=True) == "Slurm job 1200_34 is requeued and resumes the run"
    assert log.read_text() == "requeue 1234\nrequeue 1200_34\n"


def test_slurm_that_cannot_requeue_is_one_line(monkeypatch, scontrol):
    _, fail = scontrol
    fail("Job is not requeueable")
    assert advice(requeue=True) == "Slurm job 1234 cannot be requeued (Job is not requeueable): submit it again"
    monkeypatch.setenv("PATH", "/nowhere")
    assert advice(requeue=True).startswith("Slurm job 1234 cannot be requeued ([Errno 2] No such file or directory")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert advice(requeue=True) == ""


def test_checkpoints_of_other_programs_are_not_resumed(monkeypatch, tmp_path, scontrol):
    """Lightning looks for hpc_ckpt_N.ckpt in its folder if it is started by srun."""
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    run(train, monkeypatch, *FAST, "trainer.max_steps=1", f"hydra.run.dir={tmp_path}/run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_submitit_requeues_after_the_step(monkeypatch, tmp_path):
    """Its local executor handles SIGUSR2 as that for Slurm does, and starts the job again."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    fault = signal_at(tmp_path, 10, signal.SIGUSR2)
    settings = [*FAST, "method=clean", "trainer.max_epochs=1"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/whole")
    arguments = [
        "-m", "hydra/launcher=processes", *settings, fault, "resume=true",
        f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweep.subdir=run",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "SIGUSR2-0").exists()
    assert difference(tmp_path / "whole", tmp_path / "sweep" / "run") == ""
    output = "".join(path.read_text() for path in (tmp_path / "sweep" / ".submitit").glob("*/*_log.*"))
    assert "has no checkpoint to resume" in output
    assert "Requeued job" in output
