"""Validation in several processes equals validation in one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nsaug.data.splits import is_held_out
from nsaug.models.weights import read_metadata
from tests.commands import metrics
from tests.conftest import ROOT

NAMES = ("val/loss", "val/top1", "val/adv_top1")


def save_noise(root, count):
    """Save images in three classes, and return the ids of those that are held out."""
    rng = np.random.default_rng(0)
    ids = [f"train/{'abc'[number % 3]}/{number:03d}.png" for number in range(count)]
    for image_id in ids:
        path = root / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return [image_id for image_id in ids if is_held_out(image_id, 0.25)]


@pytest.mark.slow
@pytest.mark.parametrize("unreadable", [0, 1])
def test_processes_agree(tmp_path, unreadable):
    """Images that neither 2 nor 3 processes share evenly, in batches of 4. The learning rate changes no weight."""
    held_out = save_noise(tmp_path / "images", 150)
    assert len(held_out) % 2
    assert len(held_out) % 3
    for image_id in held_out[:unreadable]:
        (tmp_path / "images" / image_id).write_bytes(b"")
    values = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        command = [
            sys.executable, str(ROOT / "train.py"), "data=folder", f"data.root={tmp_path}/images", "data.crop=none",
            "data.val_fraction=0.25", "data.batch_size=4", "data.num_workers=0", "data.max_unreadable=0.02",
            "model.img_size=8", "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}",
            "trainer.enable_progress_bar=false", "trainer.max_steps=2", "val_attack_batches=3", "attack=pgd",
            "optim.lr=1e-30", "logger=csv", "logger.num_images=0", "save=best", f"hydra.run.dir={folder}",
        ]  # fmt: skip
        output = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True
        )
        assert output.returncode == 0, output.stderr
        assert read_metadata(folder)["splits"]["val"]["count"] == len(held_out)
        assert ("1 of " in output.stdout) == bool(unreadable)
        (row,) = [row for row in metrics(folder) if row["val/top1"]]
        values.append([float(row[name]) for name in NAMES])
    np.testing.assert_allclose(values[1:], [values[0]] * 2, rtol=1e-5)
