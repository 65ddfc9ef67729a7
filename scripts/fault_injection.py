"""Are runs that were stopped and taken up again the runs that were never stopped?

    python benchmarks/soak.py --kills 20

trains on the embedded digits once without a fault; then as often as asked for with one (SIGKILL or SIGTERM at a random
moment, an exception in a random step, a disk that is full at a random checkpoint), started again with resume=true; and
prints how many ended with bit-identical weights, optimiser and metrics. Exits 1 where one did not.
"""

import argparse
import os
import random
import resource
import shutil
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
"""Everything on that draws at random or remembers."""
FAULTS = ("SIGKILL", "SIGTERM", "exception", "SIGKILL twice", "full disk")
STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many runs are stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, help="of train.py")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        begun = training_began(process := start(whole, options.settings), whole)
        assert process.wait() == 0, "the run without a fault failed"
        lasts = time.monotonic() - begun
        print(f"without a fault: {lasts:.1f} s of training", flush=True)
        same = 0
        for number in range(options.kills):
            fault, folder = FAULTS[number % len(FAULTS)], Path(place) / f"run{number}"
            told = stop(fault, folder, options.settings, rng, lasts)
            again = start(folder, [*options.settings, "resume=true"]).wait()
            different = f"started again, it exits with {again}" if again else difference(whole, folder)
            same += not different
            print(f"{fault:14} {told:34} {different or 'identical'}", flush=True)
            shutil.rmtree(folder)
    print(f"{same} of {options.kills} ended identical")
    sys.exit(same < options.kills)


def start(folder: Path, settings: list[str], *fault: str) -> subprocess.Popen[bytes]:
    """A run of train.py in a process of its own; with `fault`, of this script, which injects it."""
    script = [__file__, "--inject", *fault] if fault else [str(ROOT / "train.py")]
    with open(folder.with_suffix(".log"), "ab") as log:
        command = [sys.executable, *script, *settings, f"hydra.run.dir={folder}"]
        return subprocess.Popen(command, stdout=log, stderr=log)


def training_began(process: subprocess.Popen[bytes], folder: Path) -> float:
    """When it did: config.json is written just before."""
    while not (folder / "config.json").is_file() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic()


def stop(fault: str, folder: Path, settings: list[str], rng: random.Random, lasts: float) -> str:
    """Starts a run, and stops it by a fault; says when."""
    if not fault.startswith("SIG"):
        at = rng.randrange(STEPS if fault == "exception" else STEPS // 7)
        code = start(folder, settings, fault, str(at)).wait()
        return f"at {'step' if fault == 'exception' else 'checkpoint'} {at}, exit {code}"
    told = []
    for again in range(1 + fault.endswith("twice")):
        process = start(folder, [*settings, *(["resume=true"] if again else [])])
        if not again:
            training_began(process, folder)
        moment = rng.uniform(0, lasts)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.Signals[fault.split()[0]])
        told.append(f"after {moment:.1f} s, exit {process.wait()}")
    return "; ".join(told)


def difference(whole: Path, folder: Path) -> str:
    """What of two runs is not the same; empty where all is."""
    ours, theirs = (torch.load(each / "last.ckpt", weights_only=True) for each in (whole, folder))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        if not equal(ours[part], theirs[part]):
            return f"{part} differs"
    for name in ("model.safetensors", "metrics.csv"):
        if (whole / name).read_bytes() != (folder / name).read_bytes():
            return f"{name} differs"
    return ""


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or bool(one.isnan().all() and other.isnan().all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def inject(fault: str, at: int) -> None:
    """Runs train.py in this process, and makes its step or checkpoint number `at` fail."""
    sys.path.insert(0, str(ROOT))
    import train
    from nsaug.training import checkpointing
    from nsaug.training.lightning_module import Finetuner

    done = 0
    if fault == "exception":
        step = Finetuner.training_step

        def failing(self: Finetuner, *rest: Any) -> Any:
            nonlocal done
            done += 1
            if done > at:
                raise RuntimeError("injected")
            return step(self, *rest)

        Finetuner.training_step = failing  # type: ignore[method-assign]
    else:
        save = torch.save

        def full(content: Any, path: Any) -> None:
            nonlocal done
            done += 1
            if done > at:  # the kernel refuses to write on: what a full disk does, without filling one
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            save(content, path)

        checkpointing.torch.save = full  # type: ignore[attr-defined]
    train.main()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--inject"]:
        fault, at = sys.argv[2], int(sys.argv[3])
        sys.argv[1:4] = []
        inject(fault, at)
    else:
        main()
