"""Warnings about noise above eps, and validation at the end of training."""

import re
from types import SimpleNamespace

import pytest
import torch

from nsaug.cli import train
from nsaug.training import callbacks
from nsaug.training.callbacks import NoiseMonitor, ProgressLines
from tests.commands import FAST, metrics, run

pytestmark = pytest.mark.usefixtures("tmp_cwd")


def monitor_batches(converged, advice="", window=5):
    """Run a monitor over the fractions of a training, one per batch."""
    noise = SimpleNamespace(advice=advice)
    monitor, module = NoiseMonitor(window), SimpleNamespace(method=SimpleNamespace(noise=noise))
    for batch, value in enumerate(converged):
        monitor.on_train_batch_end(None, module, {"metrics": {"converged": torch.tensor(value)}}, None, batch)
    return monitor, module


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of the callbacks."""
    lines = []
    monkeypatch.setattr(callbacks.log, "warning", lambda text, *args: lines.append(text % args))
    return lines


def test_noise_above_eps_is_warned_about_during_training(warnings):
    monitor_batches([0.8] * 5 + [0.4] * 4, advice="raise nullspace.num_steps")
    assert warnings == []
    monitor_batches([0.8] * 5 + [0.4] * 5, advice="raise nullspace.num_steps")
    assert warnings == ["only 40 % of the images have noise below eps: raise nullspace.num_steps"]


def test_noise_above_eps_is_warned_about_once(warnings):
    monitor, module = monitor_batches([0.0] * 30)
    monitor.on_train_end(None, module)
    assert warnings == ["only 0 % of the images have noise below eps"]


def test_short_run_is_checked_at_its_end(warnings):
    monitor, module = monitor_batches([0.1, 0.2])
    assert warnings == []
    monitor.on_train_end(None, module)
    assert len(warnings) == 1


def test_noise_below_eps_is_no_warning(warnings):
    monitor, module = monitor_batches([0.6] * 23)
    monitor.on_train_end(None, module)
    assert warnings == []


def test_monitor_ignores_methods_without_noise_and_skipped_batches(warnings):
    monitor = NoiseMonitor(window=1)
    monitor.on_train_batch_end(None, None, {"metrics": {"top1": torch.tensor(0.0)}}, None, 0)
    monitor.on_train_batch_end(None, None, None, None, 1)
    monitor.on_train_end(None, None)
    assert warnings == []


def test_monitor_reads_the_device_once_per_window(monkeypatch):
    reads = []
    to_float = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: reads.append(1) or to_float(self))
    monitor_batches([0.9] * 20, window=10)
    assert len(reads) == 2


def test_validation_at_max_steps_inside_an_epoch(monkeypatch, tmp_path):
    settings = [*FAST, "method=clean", "save=best", "trainer.max_steps=3", "logger.num_images=4"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/run")
    assert [row["step"] for row in metrics(tmp_path / "run") if row["val/top1"]] == ["2"]
    assert (tmp_path / "run" / "best.ckpt").exists()


def test_validation_inside_epochs(monkeypatch, tmp_path):
    """At steps 8 and 16, and at the end of training."""
    settings = [*FAST, "method=clean", "trainer.val_check_interval=0.4", "trainer.max_epochs=1"]
    run(train, monkeypatch, *settings, "trainer.limit_val_batches=1", f"hydra.run.dir={tmp_path}/run")
    assert [row["step"] for row in metrics(tmp_path / "run") if row["val/top1"]] == ["7", "15", "19"]


def test_validation_can_be_switched_off(monkeypatch, tmp_path, capsys):
    run(train, monkeypatch, *FAST, "method=clean", "trainer.max_steps=3", "trainer.limit_val_batches=0")
    assert "clean: no validation" in capsys.readouterr().out


def test_progress_without_a_terminal(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    settings = [*FAST, "trainer.enable_progress_bar=true", "trainer.max_epochs=2"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 40
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"step {number} of 40: loss [\d.]+(, val top-1 [\d.]+ %)?; about \d+ s left", line), line
    assert "val top-1" in lines[-1]


def test_validation_shows_progress_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    settings = [*FAST, "trainer.enable_progress_bar=true", "trainer.max_epochs=1", "data.batch_size=32"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation: ")]
    assert lines == [f"validation: batch {number} of {len(lines)}" for number in range(1, len(lines) + 1)]
    assert lines


def test_progress_lines_are_rare(monkeypatch):
    lines, seconds = [], iter([0.0, 10.0, 29.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(callbacks.log, "info", lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(seconds))
    progress, trainer = ProgressLines(), SimpleNamespace(global_step=2, estimated_stepping_batches=12)
    trainer.callback_metrics = {"train/loss": torch.tensor(0.5)}
    progress.on_train_start(trainer, None)
    for step in range(3, 8):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None)
    assert lines == ["step 5 of 12: loss 0.5; about 72 s left", "step 7 of 12: loss 0.5; about 62 s left"]
    progress.disable()
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: 1e9)
    progress.on_train_start(trainer, None)
    progress.on_train_batch_end(trainer, None)
    assert len(lines) == 2, "silent in the other processes"
