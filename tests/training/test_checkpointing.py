"""Errors before and during training: disk space, non-finite losses, unreadable images, lost workers."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from nsaug.cli import train
from nsaug.data import Folder, SeededDataset
from nsaug.methods import Clean
from nsaug.training import checkpointing
from nsaug.training.lightning_module import Finetuner
from nsaug.utils.errors import UserError
from tests.commands import FAST, cli_error, run
from tests.conftest import tiny_vit

pytestmark = pytest.mark.usefixtures("tmp_cwd")


@pytest.fixture
def explodes(monkeypatch):
    """Multiplies the losses of the batches with these numbers by these values."""
    loss, batches, done = Clean.loss, {}, []

    def exploding(self, *args):
        done.append(1)
        value, metrics = loss(self, *args)
        return value * batches.get(len(done) - 1, 1.0), metrics

    monkeypatch.setattr(Clean, "loss", exploding)
    return batches


def test_nonfinite_loss_ends_the_run(monkeypatch, tmp_path, capsys, explodes):
    explodes[23] = float("nan")
    line = cli_error(
        train, monkeypatch, capsys, *FAST, "method=clean", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run"
    )
    assert line == (
        "error: batch 23: the loss is nan: lower optim.lr, or skip such batches with max_nonfinite_batches=1"
        f" (the last good checkpoint is {tmp_path}/run/last.ckpt)"
    )
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for key, value in saved["state_dict"].items() if key.startswith("vit."))


def test_nonfinite_batches_are_skipped_up_to_a_maximum(monkeypatch, tmp_path, capsys, explodes):
    explodes |= {3: float("nan"), 7: float("inf")}
    settings = [*FAST, "method=clean", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    run(train, monkeypatch, *settings, "max_nonfinite_batches=2", f"hydra.run.dir={tmp_path}/run")
    assert "batch 3 skipped: non-finite loss (1 of 2)" in capsys.readouterr().out
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["skipped"] == 2
    assert saved["global_step"] == 20, "a skipped batch is a step without a change"
    assert all(value.isfinite().all() for key, value in saved["state_dict"].items() if key.startswith("vit."))


def make_images(root, broken=0, count=40):
    for number in range(count):
        path = root / "train" / str(number % 2) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (6 * number, 100, 40 * (number % 2))).save(path)
        if number < broken:
            path.write_bytes(path.read_bytes()[:40])
    return [f"data.root={root}", "data=folder", "data.val_fraction=0", "data.crop=none", "data.batch_size=10"]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_reported_and_replaced(monkeypatch, tmp_path, capsys, workers):
    settings = make_images(tmp_path / "images", broken=2)
    run(
        train, monkeypatch, *FAST, *settings, "data.max_unreadable=0.05", f"data.num_workers={workers}",
        "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "2 of 40 training images cannot be read (train/0/00.png, train/1/01.png): others replace them" in output
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_the_run(monkeypatch, tmp_path, capsys, workers):
    settings = make_images(tmp_path / "images", broken=3)
    line = cli_error(
        train, monkeypatch, capsys, *FAST, *settings, "data.max_unreadable=0.05", f"data.num_workers={workers}",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert "of 40 training images cannot be read (train/" in line
    assert line.endswith("more than data.max_unreadable=0.05: repair or remove them, or raise the limit")


def test_unreadable_image_is_replaced_by_the_next(tmp_path):
    make_images(tmp_path, broken=2)
    data = Folder(root=str(tmp_path), val_fraction=0, crop="none", hflip=0)
    data.setup("fit")
    data.configure(tiny_vit().data_config)
    unreadable = torch.zeros(40, dtype=torch.bool)
    images = SeededDataset(data.train_set, 0, unreadable)
    assert images[0, 0][2] == images[0, 1][2] == "train/0/02.png"
    assert images[0, 20][2] == "train/1/03.png"
    assert unreadable.nonzero()[:, 0].tolist() == [0, 20]


def test_killed_worker_is_one_line(monkeypatch, tmp_path, capsys):
    get, main_process = SeededDataset.__getitem__, os.getpid()

    def dying(self, key):
        if os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, key)

    monkeypatch.setattr(SeededDataset, "__getitem__", dying)
    line = cli_error(train, monkeypatch, capsys, *FAST, "data.num_workers=1", f"hydra.run.dir={tmp_path}/run")
    assert line.startswith("error: a data loading process died (DataLoader worker")
    assert line.endswith("lower data.num_workers; no checkpoint was written yet")


def test_full_disk_is_reported_before_the_first_step(monkeypatch, tmp_path, capsys):
    stepped = []
    monkeypatch.setattr(Finetuner, "training_step", lambda *rest: stepped.append(1))
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda path: SimpleNamespace(free=40_960))
    line = cli_error(train, monkeypatch, capsys, *FAST, f"hydra.run.dir={tmp_path}/run")
    assert line.startswith(f"error: {tmp_path}/run has 0.0 GB free, checkpoints of this model need 0.0 GB:")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"/proc/1/x cannot be written \(.*\): type hydra.run.dir=PATH"):
        checkpointing.check_disk_space(checkpointing.Path("/proc/1/x"), tiny_vit())
    assert not stepped
