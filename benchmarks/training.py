"""Time that train.py adds to a bare loop of timm and torch, and the time until its first step.

    python benchmarks/training.py                                      digits, and random images for ViT-Ti/16 at 224 px
    python benchmarks/training.py --start                              from the command to the first step or to an error
    python benchmarks/training.py --check                              exit 1 above a limit

The bare loop has the same timm model, batches, loader, optimizer, schedule and gradient clipping; train.py also
checks every loss, logs, and writes checkpoints. Both train plainly. In every round each takes the same number of steps
after a few to warm up, in a process of its own, and takes turns in going first; `step` is the time of a step of
train.py relative to one of the bare loop in the same round.

`start` is the time from the command to the end of the first step, or to a one-line error, relative to that of
`python -c "import torch, lightning, timm"`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.nn import functional as F

from nsaug.cli.app import instantiate
from nsaug.cli.compose import compose
from nsaug.data import ImageDataModule
from nsaug.data.arrays import ArrayLoader
from nsaug.data.dataset import ImageSet
from nsaug.models.noisy_vit import NoisyViT
from nsaug.training.lightning_module import warmup_cosine

ROOT = Path(__file__).resolve().parents[1]
CASES = {  # settings of train.py, number of timed steps, and the limit of `step`
    "digits": (["experiment=digits_pretrain"], 400, 2.0),
    "vit_ti": (
        [
            "data=custom",
            "data._target_=training.RandomImages",
            "+data.batch_size=16",
            "+data.val_fraction=0",
            "model=vit_ti",
            "model.pretrained=false",
            "method=clean",
        ],
        20,
        1.03,
    ),
}
COMMON = ["trainer=cpu", "logger=csv", "trainer.limit_val_batches=0", "val_attack_batches=0", "logger.num_images=0"]
NUM_WARMUP = 5
MAX_START = 1.5
IMPORTS = [sys.executable, "-c", "import torch, lightning, timm"]


class StepTimes(L.Callback):
    """Write the times at which the steps ended, in seconds since the epoch, to a file."""

    def __init__(self, file: str) -> None:
        self.file, self.times = file, list[float]()

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.time())

    def on_train_end(self, *args: Any) -> None:
        Path(self.file).write_text(json.dumps(self.times))


class RandomImages(ImageDataModule):
    """As many random images as the steps of the case vit_ti take, in memory."""

    class_names = ["0", "1"]  # noqa: RUF012  (as in ImageDataModule)

    def read(self, split: Any) -> ImageSet:
        count = 16 * (NUM_WARMUP + CASES["vit_ti"][1])
        pixels = np.random.default_rng(0).integers(256, size=(count, 224, 224, 3), dtype=np.uint8)
        return ImageSet(
            [str(index) for index in range(count)], [index % 2 for index in range(count)], ArrayLoader(pixels)
        )


def bare_loop(case: str, num_steps: int) -> list[float]:
    """Train the model of a case without Lightning; the times at which the steps ended."""
    config = compose("train", [*CASES[case][0], *COMMON])
    torch.manual_seed(0)
    data = instantiate(config.data, ImageDataModule)
    data.setup("fit")
    vit = instantiate(config.model, NoisyViT, num_classes=len(data.class_names))
    data.configure(vit.data_config, seed=0)
    model, times = vit.model, list[float]()
    mean, std = (torch.tensor(vit.data_config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, num_steps, num_steps // 20)
    )
    model.train()
    while True:
        for images, labels, *_ in data.train_dataloader():
            loss = F.cross_entropy(model((images - mean) / std), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
            times.append(time.time())
            if len(times) == num_steps:
                return times


def train(case: str, num_steps: int, folder: Path) -> list[float]:
    """Run train.py; the times at which the steps ended."""
    file = folder / "times.json"
    callback = f"trainer.callbacks=[{{_target_:training.StepTimes,file:{file}}}]"
    duration = ["trainer.max_epochs=-1", f"trainer.max_steps={num_steps}"]
    run(ROOT / "train.py", *CASES[case][0], *COMMON, *duration, f"+{callback}", f"hydra.run.dir={folder / 'run'}")
    return list(json.loads(file.read_text()))


def run(script: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"}
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"python {script.name} failed: {result.stderr}")


def measure_steps(case: str, num_rounds: int) -> list[float]:
    """Time of a step of train.py relative to one of the bare loop, in every round."""
    num_steps = NUM_WARMUP + CASES[case][1]
    ratios = []
    for number in range(num_rounds):
        seconds = {}
        for kind in ("bare", "train")[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                if kind == "train":
                    times = train(case, num_steps, Path(folder))
                else:
                    file = Path(folder, "times.json")
                    run(Path(__file__), "--bare", case, str(file))
                    times = json.loads(file.read_text())
            seconds[kind] = (times[-1] - times[NUM_WARMUP - 1]) / (num_steps - NUM_WARMUP)
        ratios.append(seconds["train"] / seconds["bare"])
    return ratios


def measure_start(num_rounds: int) -> dict[str, list[float]]:
    """Time until a one-line error and until the first step of digits, relative to the imports, in every round."""
    ratios: dict[str, list[float]] = {"error": [], "error of evaluate.py": [], "first step": []}
    for _ in range(num_rounds):
        start = time.time()
        subprocess.run(IMPORTS, check=True)
        imports = time.time() - start
        for name, command in (
            ("error", ["train.py", "nullspace.eps=-1"]),
            ("error of evaluate.py", ["evaluate.py", "suite=clean", "checkpoint=nowhere"]),
        ):
            start = time.time()
            result = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], capture_output=True, check=False)
            assert result.returncode == 1
            ratios[name].append((time.time() - start) / imports)
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            ratios["first step"].append((train("digits", 1, Path(folder))[0] - start) / imports)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="store_true", help="measure the time until the first step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="exit 1 above a limit")
    parser.add_argument("--bare", nargs=2, metavar=("CASE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        case, file = args.bare
        Path(file).write_text(json.dumps(bare_loop(case, NUM_WARMUP + CASES[case][1])))
        return
    if args.start:
        ratios = measure_start(args.rounds)
        limits = dict.fromkeys(ratios, MAX_START)
    else:
        ratios = {case: measure_steps(case, args.rounds) for case in CASES}
        limits = {case: limit for case, (_, _, limit) in CASES.items()}
    print(f"{'ratio':>6} {'quartiles':>13} {'limit':>6}   {'start' if args.start else 'step'}")
    medians = {}
    for name, values in ratios.items():
        low, medians[name], high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        print(f"{medians[name]:6.3f} {low:6.3f}-{high:6.3f} {limits[name]:6.2f}   {name}")
    sys.exit(args.check and any(medians[name] > limits[name] for name in medians))


if __name__ == "__main__":
    main()
