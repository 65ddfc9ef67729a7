"""Stop training runs by faults, resume them, and compare them with an uninterrupted run.

    python scripts/fault_injection.py --kills 20

Trains on the embedded digits with nullspace noise per image and with universal noise. Every further run is stopped by a
fault and restarted with resume=true: SIGKILL or SIGTERM at a random moment, an exception in a random step, or a full
disk at a random checkpoint. Prints how many runs end with the weights, optimizer and metrics of the uninterrupted run,
bit for bit; exits 1 unless all do.
"""

import argparse
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "+model.args.drop_rate=0.1", "model.drop_path_rate=0.1", "ema=0.9",
    "mixup.mixup_alpha=0.2", "mixup.cutmix_alpha=0.2", "data.crop=padded", "data.auto_augment=rand-m9-mstd0.5-inc1",
    "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.max_epochs=5",
    "checkpoint_every_n_steps=7", "val_attack_batches=1", "logger=csv", "logger.num_images=0",
]  # fmt: skip
"""Everything that is random or has state."""
VARIANTS = ("per_image", "universal")
"""Of the group nullspace: noise of the step, and noise of the epoch, which is state in a buffer."""
FAULTS = ("SIGKILL", "SIGTERM", "exception", "SIGKILL twice", "full disk")
NUM_STEPS, NUM_CHECKPOINTS = 100, 14
"""At least as many as in 5 epochs of 20 steps."""
MAX_FILE_SIZE = 100_000
"""Bytes; less than a checkpoint has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of runs to stop")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    num_stopped = num_identical = 0
    with tempfile.TemporaryDirectory() as tmp:
        seconds = {}
        for variant in VARIANTS:
            folder = Path(tmp) / variant
            process = start(folder, variant)
            started = wait_for_training(process, folder)
            if process.wait():
                sys.exit(f"the uninterrupted run fails: {last_line(folder)}")
            seconds[variant] = time.monotonic() - started
            print(f"{variant:9} uninterrupted  {seconds[variant]:.1f} s of training", flush=True)
        for number in itertools.count():
            if num_stopped == args.kills:
                break
            variant, fault = VARIANTS[number % len(VARIANTS)], FAULTS[number % len(FAULTS)]
            folder = Path(tmp) / f"run{number}"
            stopped, moment = stop(fault, folder, variant, rng, seconds[variant])
            if not stopped:
                result = "not counted: ended before the fault"
            elif start(folder, variant, "resume=true").wait():
                result = f"resuming fails: {last_line(folder)}"
            else:
                result = difference(Path(tmp) / variant, folder) or "identical"
            num_stopped += stopped
            num_identical += result == "identical"
            print(f"{variant:9} {fault:14} {moment:40} {result}", flush=True)
    print(f"{num_identical} of {args.kills} runs are identical")
    sys.exit(num_identical < args.kills)


def start(folder: Path, variant: str, *settings: str, fault: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start train.py in a process; with (fault, number), start this script instead, which injects the fault."""
    script = [__file__, "--inject", *fault] if fault else [str(ROOT / "train.py")]
    command = [sys.executable, *script, *SETTINGS, f"nullspace={variant}", *settings, f"hydra.run.dir={folder}"]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def last_line(folder: Path) -> str:
    """The last line that a run printed."""
    return (folder.with_suffix(".log").read_text().splitlines() or [""])[-1]


def wait_for_training(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait until config.json is written, just before the first step; return the time."""
    while not (folder / "config.json").is_file() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic()


def stop(fault: str, folder: Path, variant: str, rng: random.Random, seconds: float) -> tuple[bool, str]:
    """Start a run and stop it by a fault.

    Args:
        fault: one of FAULTS.
        folder: of the run.
        variant: one of VARIANTS.
        rng: draws the moment of the fault.
        seconds: duration of the training without a fault.

    Returns:
        Whether the fault came before the end of the run, and a description with exit codes.
    """
    if not fault.startswith("SIG"):
        unit, count = ("step", NUM_STEPS) if fault == "exception" else ("checkpoint", NUM_CHECKPOINTS)
        number = rng.randrange(count)
        code = start(folder, variant, fault=(fault, str(number))).wait()
        return code != 0, f"at {unit} {number}, exit code {code}"
    codes, moments = [], []
    for settings in ([], ["resume=true"]) if fault.endswith("twice") else ([],):
        process = start(folder, variant, *settings)
        wait_for_training(process, folder)
        moment = rng.uniform(0, seconds)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.Signals[fault.split()[0]])
        codes.append(process.wait())
        moments.append(f"after {moment:.1f} s, exit code {codes[-1]}")
    return codes[0] != 0, "; ".join(moments)


def difference(expected: Path, actual: Path) -> str:
    """The first part in which two finished runs differ; empty if they are identical."""
    checkpoints = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (expected, actual)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        if not equal(*(checkpoint[key] for checkpoint in checkpoints)):
            return f"{key} differs"
    for name in ("model.safetensors", "metrics.csv"):
        if (expected / name).read_bytes() != (actual / name).read_bytes():
            return f"{name} differs"
    return ""


def equal(one: Any, other: Any) -> bool:
    """Equality of nested containers of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def inject(fault: str, number: int) -> None:
    """Train in this process, and let step or checkpoint `number`, counted from 0, fail."""
    from nsaug.cli import train
    from nsaug.training import checkpointing
    from nsaug.training.lightning_module import Finetuner

    owner, name = (Finetuner, "training_step") if fault == "exception" else (checkpointing.torch, "save")
    function, calls = getattr(owner, name), 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > number:
            if fault == "exception":
                raise RuntimeError("injected")
            # As on a full disk, the kernel refuses to write more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_SIZE, resource.RLIM_INFINITY))
        return function(*args)

    setattr(owner, name, failing)
    train.main()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--inject"]:
        sys.path.insert(0, str(ROOT))
        fault, number = sys.argv[2], int(sys.argv[3])
        sys.argv[1:4] = []
        inject(fault, number)
    else:
        main()
