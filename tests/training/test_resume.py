"""A resumed run ends exactly like an uninterrupted one. `make fault-injection` kills processes."""

import functools
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from nsaug.cli import train
from nsaug.models import weights
from nsaug.models.weights import read_metadata
from nsaug.training import checkpointing, lightning_module, resume
from nsaug.training.lightning_module import AdamWConfig, Finetuner, warmup_cosine
from nsaug.training.loggers import MetricsLogger
from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write
from scripts.fault_injection import SETTINGS, difference, equal
from tests.commands import FAST, cli_error, hold_lock, metrics, run
from tests.conftest import ROOT
from tests.data.helpers import make_tree
from tests.training.ranks import signal_at, slurm_env, start_ranks, wait

pytestmark = pytest.mark.usefixtures("tmp_cwd")
SHORT = [setting for setting in SETTINGS if "max_epochs" not in setting] + ["trainer.max_epochs=2"]
VARIANTS = {
    "per_image": [],
    "universal": ["nullspace=universal"],
    "accumulated": ["trainer.accumulate_grad_batches=3", "checkpoint_every_n_steps=2"],
    "trades": ["method=trades", "method.attack.num_steps=2"],
    "two views": ["method=clean_two_views", "save=best"],
    "workers": ["method=clean", "data.num_workers=2"],
    "val_check_interval": ["method=clean", "save=best", "trainer.val_check_interval=7"],  # at every checkpoint
}


@pytest.fixture
def breaks(monkeypatch):
    """Makes the n-th training step from now on raise an error, once."""
    step, left = Finetuner.training_step, []

    def failing(self, *rest):
        if left:
            left[0] -= 1
            if left[0] == 0:
                left.clear()
                raise RuntimeError("injected")
        return step(self, *rest)

    monkeypatch.setattr(Finetuner, "training_step", failing)
    return left.append


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[] if name == "per_image" else [pytest.mark.slow]) for name in VARIANTS]
)
def test_resumed_run_is_bit_identical(variant, monkeypatch, tmp_path, capsys, breaks):
    """Stopped in the first epoch, resumed, and stopped again in the second."""
    settings = [*SHORT, *VARIANTS[variant]]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/whole")
    for step, more in ((12, []), (17, ["resume=true"])):
        breaks(step)
        line = cli_error(train, monkeypatch, capsys, *settings, *more, f"hydra.run.dir={tmp_path}/broken")
        assert "RuntimeError: injected" in line
    run(train, monkeypatch, *settings, f"resume={tmp_path}/broken", f"hydra.run.dir={tmp_path}/other")
    assert difference(tmp_path / "whole", tmp_path / "broken") == ""
    assert not (tmp_path / "other" / "model.safetensors").exists()


def learning_rates(folder):
    return [float(row["train/lr"]) for row in metrics(folder) if row["train/lr"]]


@pytest.mark.slow
def test_finished_run_is_extended(monkeypatch, tmp_path, caplog):
    """Its learning rate is from then on that of a run of the new length; with a constant one it is that run."""
    settings = [*SHORT[:-1], "trainer.log_every_n_steps=1"]
    run(train, monkeypatch, *settings, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/cosine")
    run(train, monkeypatch, f"resume={tmp_path}/cosine", "trainer.max_epochs=2")
    config = AdamWConfig(lr=read_metadata(tmp_path / "cosine")["settings"]["optim"]["lr"])
    expected = [
        config.lr * warmup_cosine(step, total, round(config.warmup * total))
        for total, steps in ((20, range(20)), (40, range(20, 40)))
        for step in steps
    ]
    assert learning_rates(tmp_path / "cosine") == pytest.approx(expected)

    monkeypatch.setattr(lightning_module, "warmup_cosine", lambda *_, **__: 1.0)
    run(train, monkeypatch, *settings, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/whole")
    run(train, monkeypatch, *settings, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/extended")
    run(train, monkeypatch, f"resume={tmp_path}/extended", "trainer.max_epochs=2")
    assert difference(tmp_path / "whole", tmp_path / "extended") == ""


@pytest.mark.slow
def test_steps_are_extended_and_cannot_end_before_the_checkpoint(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lightning_module, "warmup_cosine", lambda *_, **__: 1.0)
    for name, steps in (("whole", 33), ("extended", 25)):
        run(train, monkeypatch, *FAST, f"trainer.max_steps={steps}", f"hydra.run.dir={tmp_path}/{name}")
    resumed = f"resume={tmp_path}/extended"
    for setting, begun in (("max_epochs=1", "epoch 2"), ("max_steps=24", "step 25")):
        line = cli_error(train, monkeypatch, capsys, resumed, f"trainer.{setting}")
        key, number = setting.split("=")
        assert line == (
            f"error: {resumed}: that run has begun {begun}, trainer.{key} ends it after {number}: type a larger number"
        )
    run(train, monkeypatch, resumed, "trainer.max_steps=33")
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "extended")]
    assert all(equal(states[0][key], states[1][key]) for key in ("state_dict", "optimizer_states", "global_step"))


def test_changed_images_are_named(monkeypatch, tmp_path, capsys):
    make_tree(tmp_path / "images" / "train", ["cat", "dog"], images=20)
    settings = [*FAST, "data=folder", f"data.root={tmp_path}/images", "data.batch_size=8", "data.num_workers=0"]
    run(train, monkeypatch, *settings, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    splits = read_metadata(tmp_path / "run")["splits"]
    (tmp_path / "images" / "train" / "cat" / "0.png").unlink()
    line = cli_error(train, monkeypatch, capsys, *settings, "trainer.max_epochs=1", f"resume={tmp_path}/run")
    count = splits["train"]["count"]
    assert splits["val"]["count"] == 40 - count
    assert line == (
        f"error: resume={tmp_path}/run: the images have changed since that run started ({count - 1} training images"
        f" instead of {count}): restore them, or start a new run"
    )


def two_processes(strategy):
    shared = [setting for setting in SHORT if setting not in ("trainer=cpu", "checkpoint_every_n_steps=7")]
    return [
        *shared, "checkpoint_every_n_steps=4", "trainer.log_every_n_steps=4", "data.num_workers=0",
        f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2",
        f"nullspace={'universal' if strategy == 'fsdp' else 'per_image'}",
    ]  # fmt: skip


def start_train(folder, *settings):
    """Start train.py, which starts the other processes itself."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    return subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of an uninterrupted run by a strategy."""

    @functools.cache
    def train_in_two_processes(strategy):
        folder = tmp_path_factory.mktemp(strategy)
        ((code, error),) = wait([start_train(folder, *two_processes(strategy), f"hydra.run.dir={folder}")])
        assert code == 0, error
        return folder

    return train_in_two_processes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGKILL, None), (signal.SIGTERM, 1)])
def test_two_processes_resume(tmp_path, whole, strategy, number, rank):
    """All processes are killed at the start of the seventh step, or one of them is asked to stop."""
    fault = signal_at(tmp_path, 6, number, rank)
    command = [*two_processes(strategy), fault, f"hydra.run.dir={tmp_path}/broken"]
    ((code, error),) = wait([start_train(tmp_path, *command)])
    kept = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)["global_step"]
    if number == signal.SIGTERM:
        assert (code, kept) == (128 + number, 7), error
        advice = f"type python train.py resume={tmp_path}/broken to continue"
        assert error.splitlines()[-1] == f"stopped by SIGTERM: {advice}"
    else:
        assert code
        assert kept == 4
    ((code, error),) = wait([start_train(tmp_path, *command, "resume=true")])
    assert code == 0, error
    assert difference(whole(strategy), tmp_path / "broken") == ""


@pytest.mark.slow
def test_slurm_job_is_requeued_and_resumes(tmp_path, whole):
    """Two processes as srun starts them; Slurm's signal reaches one of them."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n')
    scontrol.chmod(0o755)
    fault = signal_at(tmp_path, 6, signal.SIGUSR1, rank=1)
    command = [*two_processes("ddp"), fault, f"hydra.run.dir={tmp_path}/run", "resume=true"]
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    stopped, requeued = (
        wait(start_ranks(2, str(ROOT / "train.py"), *command, cwd=tmp_path, env=slurm_env, PATH=path)) for _ in range(2)
    )
    assert [code for code, _ in stopped] == [128 + signal.SIGUSR1, 0], stopped
    assert stopped[0][1].splitlines()[-1] == "stopped by SIGUSR1: Slurm job 1234 is requeued and resumes the run"
    assert (tmp_path / "log").read_text() == "requeue 1234\n"
    assert [code for code, _ in requeued] == [0, 0], requeued
    assert difference(whole("ddp"), tmp_path / "run") == ""


def test_ctrl_c_is_one_line(monkeypatch, tmp_path, capsys, signal_handlers):
    step, done = Finetuner.training_step, []

    def interrupted(self, *rest):
        done.append(1)
        if len(done) == 25:
            signal.raise_signal(signal.SIGINT)
        return step(self, *rest)

    monkeypatch.setattr(Finetuner, "training_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(train, monkeypatch, *FAST, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run")
    assert stop.value.code == 130
    line = f"stopped by Ctrl-C: type python train.py resume={tmp_path}/run to continue"
    assert capsys.readouterr() == ("", f"{line}\n")


def test_resuming_a_finished_run_exports_its_weights(monkeypatch, tmp_path):
    """As after a kill between the last checkpoint and the export; the weights are the moving average."""
    settings = [*FAST, "trainer.max_epochs=1", "ema=0.9", f"hydra.run.dir={tmp_path}/run"]
    run(train, monkeypatch, *settings)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("model.safetensors", "metrics.csv")}
    (tmp_path / "run" / "model.safetensors").unlink()
    run(train, monkeypatch, *settings, "resume=true")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_resume_without_checkpoint_starts_a_run(monkeypatch, tmp_path, capsys):
    run(train, monkeypatch, *FAST, "trainer.max_steps=2", "resume=true", f"hydra.run.dir={tmp_path}/new")
    assert f"{tmp_path}/new has no checkpoint to resume: starting a new run" in capsys.readouterr().out
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_resume_with_other_settings_is_refused(monkeypatch, tmp_path, trained, capsys):
    for change, message in (
        ("optim.lr=0.5", "optim.lr="), ("seed=3", "seed=0, this command 3"),
        ("nullspace.num_steps=9", "nullspace.num_steps=3, this command 9"),
        ("data.batch_size=32", "data.batch_size=64"),
    ):  # fmt: skip
        line = cli_error(train, monkeypatch, capsys, *FAST, "trainer.max_epochs=1", f"resume={trained}", change)
        assert message in line
        assert line.endswith(f"type resume={trained} without other settings, or start a new run")
    run(train, monkeypatch, f"resume={trained}", "data.num_workers=1", "logger=none")


def test_resume_from_a_wrong_path_is_one_line(monkeypatch, tmp_path, capsys):
    line = cli_error(train, monkeypatch, capsys, *FAST, f"resume={tmp_path}/nowhere")
    assert line == f"error: resume={tmp_path}/nowhere has no last.ckpt: name the output folder of a run"


def damage(path):
    """Flip bits in the middle, over more bytes than the padding between two tensors."""
    content = bytearray(path.read_bytes())
    for index in range(len(content) // 2, len(content) // 2 + 200):
        content[index] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_falls_back_to_the_previous_one(monkeypatch, tmp_path, trained, caplog, capsys):
    run(train, monkeypatch, *FAST, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/whole")
    run(train, monkeypatch, *FAST, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/broken")
    broken = tmp_path / "broken"
    assert [torch.load(broken / name, weights_only=True)["epoch"] for name in ("previous.ckpt", "last.ckpt")] == [0, 1]
    damage(broken / "last.ckpt")
    line = cli_error(train, monkeypatch, capsys, *FAST, "trainer.max_epochs=2", f"resume={broken}/last.ckpt")
    assert (
        line == f"error: resume={broken}/last.ckpt is damaged: type resume={broken}, which falls back to previous.ckpt"
    )
    run(train, monkeypatch, *FAST, "trainer.max_epochs=2", f"resume={broken}")
    assert f"{broken}/last.ckpt is damaged: resuming from previous.ckpt" in capsys.readouterr().out
    assert difference(tmp_path / "whole", broken) == ""
    for name in ("last.ckpt", "previous.ckpt"):
        damage(broken / name)
    with pytest.raises(UserError, match=r"last.ckpt and previous.ckpt are damaged: start the run again"):
        resume.find_last_checkpoint(broken)


def test_full_disk_is_one_line(monkeypatch, tmp_path, capsys):
    def full(content, file):
        file.write(b"half of it")
        error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")  # of torch's writer
        error.__context__ = OSError(28, "No space left on device")
        raise error

    run(train, monkeypatch, *FAST, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    kept = (tmp_path / "run" / "last.ckpt").read_bytes()
    (tmp_path / "run" / "previous.ckpt").unlink(missing_ok=True)
    monkeypatch.setattr(checkpointing.torch, "save", full)
    line = cli_error(
        train, monkeypatch, capsys, *FAST, "trainer.max_epochs=1", "seed=1", f"hydra.run.dir={tmp_path}/run"
    )
    assert line.startswith(f"error: {tmp_path}/run/last.ckpt cannot be written (No space left on device); ")
    assert line.endswith(f"the one before is intact: free disk space and type python train.py resume={tmp_path}/run")
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == kept
    assert sorted(path.name for path in (tmp_path / "run").glob(".*.tmp")) == []


@pytest.mark.parametrize("name", ["save_weights", "save_config"])
def test_full_disk_beside_checkpoints_is_one_line(monkeypatch, tmp_path, capsys, name):
    def full(folder, *rest):
        with atomic_write(folder / "file"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, name, full)
    line = cli_error(train, monkeypatch, capsys, *FAST, "trainer.max_steps=1", f"hydra.run.dir={tmp_path}/run")
    kept = {
        "save_weights": f"type python train.py resume={tmp_path}/run to continue",
        "save_config": "no checkpoint was written yet",
    }[name]
    assert line == f"error: [Errno 28] No space left on device: '{tmp_path}/run/file'; {kept}"


@pytest.mark.slow
def test_folder_removed_during_training_is_written_again(monkeypatch, tmp_path, capsys):
    step, done = Finetuner.training_step, []

    def removing(self, *rest):
        done.append(1)
        if len(done) == 25:
            shutil.rmtree(tmp_path / "broken")
        return step(self, *rest)

    settings = [*FAST, "trainer.max_epochs=2"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/whole")
    monkeypatch.setattr(Finetuner, "training_step", removing)
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/broken")
    output = capsys.readouterr()
    assert output.out.count(f"{tmp_path}/broken/config.json is missing: writing it again") == 1
    assert output.err == ""
    assert difference(tmp_path / "whole", tmp_path / "broken") == ""
    assert weights.read_metadata(tmp_path / "broken") == weights.read_metadata(tmp_path / "whole")


def test_best_weights_that_were_removed_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "scale_duration", lambda *_: {"max_steps": 1})
    monkeypatch.setattr(Finetuner, "on_fit_end", lambda self: (tmp_path / "run" / "best.ckpt").unlink(), raising=False)
    line = cli_error(train, monkeypatch, capsys, *FAST, "save=best", f"hydra.run.dir={tmp_path}/run")
    assert (
        line == f"error: {tmp_path}/run/best.ckpt was removed: checkpoint={tmp_path}/run/last.ckpt has the last weights"
    )


def test_partial_checkpoints_are_removed_when_a_run_is_resumed(monkeypatch, tmp_path):
    """A process that is killed while it writes a checkpoint leaves a file of its size."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.ckpt.0123abcd.tmp").write_bytes(b"half of it")
    run(train, monkeypatch, *FAST, "trainer.max_steps=1", "resume=true", f"hydra.run.dir={tmp_path}/run")
    assert list((tmp_path / "run").glob(".*.tmp")) == []


def test_second_process_on_an_output_folder_is_refused(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "run"
    holder = hold_lock(folder, "train")
    try:
        line = cli_error(train, monkeypatch, capsys, *FAST, f"hydra.run.dir={folder}")
        assert line.startswith(f"error: another process is writing to {folder}: ")
        line = cli_error(train, monkeypatch, capsys, *FAST, f"resume={folder}", f"hydra.run.dir={tmp_path}/other")
        assert line.startswith(f"error: resume={folder} has no last.ckpt")
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    assert {path.name for path in folder.iterdir()} <= {".train.lock", ".hydra", "train.log"}


def test_metrics_are_replaced_as_a_whole(tmp_path, monkeypatch):
    """New columns and a resumed run rewrite metrics.csv: a fault in between leaves the old file."""
    logger = MetricsLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_text()
    assert before == "step,train/loss\n0,1.0\n"
    resumed = MetricsLogger(tmp_path, resume.read_metrics(tmp_path / "metrics.csv", before_step=1))
    resumed.log_metrics({"val/loss": 2.0}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.close(-1))
        with pytest.raises(OSError, match=r"metrics\.csv"):
            resumed.save()
    assert (tmp_path / "metrics.csv").read_text() == before
    resumed.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss,val/loss\n0,1.0,\n1,,2.0\n"


def test_resumed_run_continues_metrics_csv(monkeypatch, tmp_path, capsys, breaks):
    breaks(30)
    settings = [*FAST, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", f"hydra.run.dir={tmp_path}/run"]
    assert "RuntimeError: injected" in cli_error(train, monkeypatch, capsys, *settings)
    run(train, monkeypatch, *settings, "resume=true")
    steps = [int(row["step"]) for row in metrics(tmp_path / "run") if row["train/loss"]]
    assert steps == list(range(40))


def test_resumed_run_continues_its_wandb_run(monkeypatch, tmp_path):
    settings = [*FAST, "logger=wandb", "logger.wandb=offline", "logger.num_images=0", f"hydra.run.dir={tmp_path}/run"]
    ids = []
    for more in (["trainer.max_epochs=1"], ["trainer.max_epochs=1", "resume=true"]):
        run(train, monkeypatch, *settings, *more)
        ids.append(weights.read_metadata(tmp_path / "run")["wandb"]["id"])
    assert ids[0] == ids[1]
    runs = [path.name for path in (tmp_path / "run" / "wandb").iterdir() if path.name.startswith("offline-run")]
    assert {name.rsplit("-", 1)[1] for name in runs} == {ids[0]}
