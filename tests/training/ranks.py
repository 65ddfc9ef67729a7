"""Several processes of one run on this machine: how to start them, what they train on, what interrupts them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image

from nsaug.data import ImageDataModule, ImageSet
from nsaug.models.noisy_vit import NoisyViT
from tests.conftest import ROOT, tiny_vit

TIMEOUT = 600


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


def torchrun_env(rank: int, world: int) -> dict[str, str]:
    return {"WORLD_SIZE": str(world), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}


def slurm_env(rank: int, world: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(world), "SLURM_NTASKS_PER_NODE": str(world), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
    }  # fmt: skip


def start_ranks(world: int, *command: str, cwd: Path, env=torchrun_env, **variables: str) -> list[subprocess.Popen]:
    """Start a Python command once per rank, in the environment that torchrun or srun would make."""
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": str(ROOT)}
    common |= {"OMP_NUM_THREADS": "1"} | variables
    return [
        subprocess.Popen(
            [sys.executable, *command], env=common | env(rank, world), cwd=cwd, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]


def wait(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit codes and stderr of processes; those that hang are killed."""
    try:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


class SignalAt(L.Callback):
    """Send this process a signal at the start of a step, once.

    Args:
        step: optimizer steps before it.
        number: of the signal.
        folder: where a file marks that it was sent.
        rank: the only process that gets the signal; None: all.
    """

    def __init__(self, step: int, number: int, folder: str, rank: int | None = None) -> None:
        self.step = step
        self.number = number
        self.folder = Path(folder)
        self.rank = rank

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        rank = trainer.global_rank
        mark = self.folder / f"{signal.Signals(self.number).name}-{rank}"
        if trainer.global_step == self.step and self.rank in (None, rank) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), self.number)


def signal_at(folder: Path, step: int, number: int, rank: int | None = None) -> str:
    """The setting that adds `SignalAt` to a run."""
    where = "null" if rank is None else rank
    arguments = f"step: {step}, number: {int(number)}, folder: {folder}, rank: {where}"
    return f"trainer.callbacks=[{{_target_: tests.training.ranks.SignalAt, {arguments}}}]"


def double_vit(num_classes: int, checkpoint: None = None) -> NoisyViT:
    """A ViT in float64: what differs between strategies is then far above the rounding error."""
    return tiny_vit(num_classes=num_classes).double()


class DoubleImages(ImageDataModule):
    """Noise in two classes, as float64."""

    def __init__(self, count: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.count = count
        self.class_names = ["dark", "bright"]

    def read(self, split: str) -> ImageSet:
        ids = [f"{split}/{number:03d}" for number in range(self.count)]
        return ImageSet(ids, [number % 2 for number in range(self.count)], load_noise)

    def configure(self, *args, **kwargs) -> None:
        super().configure(*args, **kwargs)
        for images in (self.train_set, self.val_set):
            images.transform = Double(images.transform)


class Double:
    def __init__(self, transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image).double()


def load_noise(index: int) -> Image.Image:
    noise = np.random.default_rng(index).integers(200, size=(8, 8, 3)) + 55 * (index % 2)
    return Image.fromarray(noise.astype(np.uint8))
