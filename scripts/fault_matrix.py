"""Expose train.py and evaluate.py to every fault at fixed moments, and check how they end and how they continue.

    python scripts/fault_matrix.py                        # all faults, a few minutes
    python scripts/fault_matrix.py --only SIGINT removed  # those with one of these texts in their line

Every command runs in a process of its own, on a few digits that are stored as image files. A fault comes at a moment of
its work. Then the same command is started again (train.py with resume=true), and its weights, metrics or tables are
compared with those of an undisturbed command, byte for byte. Prints a line for each fault; exits 1 unless every command
ended with at most one line on stderr, kept what it had computed, and continued to the identical result.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "train": [
        "data=folder", "data.root=data", "data.batch_size=40", "data.num_workers=0", "data.max_unreadable=0.01",
        "model=micro", "trainer=cpu", "trainer.max_epochs=3", "trainer.enable_progress_bar=false",
        "checkpoint_every_n_steps=2", "val_attack_batches=1", "logger=csv", "logger.num_images=0",
    ],
    "evaluate": [
        "checkpoint=model", "data=folder", "data.root=data", "data.num_workers=0", "accelerator=cpu", "batch_size=20",
        "cache=cache", "tracking.wandb=off",
    ],
}  # fmt: skip
OUTPUTS = {
    "train": ("model.safetensors", "metrics.csv"),
    "evaluate": ("results.csv", "groups.csv", "comparisons.csv", "results.md", "results.json"),
}
"""What has to be identical after a fault."""


@dataclass(frozen=True)
class Moment:
    """A call of a function.

    Attributes:
        function: MODULE:NAME.
        number: of the call, from 0.
        kept: steps in last.ckpt, or blocks in the cache, that are there by then.
        after: whether the fault comes after the call rather than before it.
    """

    function: str
    number: int
    kept: int
    after: bool = False


MOMENTS = {
    "train": {
        "setup": Moment("nsaug.cli.train:check_data", 0, kept=0),
        "first step": Moment("nsaug.training.lightning_module:Finetuner.training_step", 0, kept=0),
        "step": Moment("nsaug.training.lightning_module:Finetuner.training_step", 17, kept=16),
        "validation": Moment("nsaug.training.lightning_module:Finetuner.validation_step", 2, kept=14),
        "checkpoint": Moment("nsaug.training.checkpointing:torch.save", 6, kept=10, after=True),
        "export": Moment("nsaug.models.weights:save_weights", 0, kept=24),
    },
    "evaluate": {
        "setup": Moment("nsaug.evaluation:Planner.build", 0, kept=0),
        "first block": Moment("nsaug.evaluation:Runner._evaluate", 0, kept=0),
        "block": Moment("nsaug.evaluation:Runner._evaluate", 7, kept=7),
        "cache": Moment("nsaug.evaluation.cache:np.savez", 6, kept=6, after=True),
        "report": Moment("nsaug.evaluation.reporting.plots:overview", 0, kept=27),
    },
}
MAX_FILE_SIZE = 1000
"""Bytes; less than a checkpoint, a cached block or a plot has."""


@dataclass(frozen=True)
class Case:
    """A fault of a command.

    Attributes:
        fault: a key of FAULTS.
        moment: a key of MOMENTS.
        code: expected exit code; 0 where the command continues.
        num_workers: processes that load images.
        kept: whether the fault leaves what was computed before.
        identical: whether the command, started again, ends with the result of an undisturbed one.
    """

    command: str
    fault: str
    moment: str
    code: int = 1
    num_workers: int = 0
    kept: bool = True
    identical: bool = True

    def __str__(self) -> str:
        workers = f", {self.num_workers} workers" if self.num_workers else ""
        return f"{self.command:9} {self.fault:28} {self.moment + workers:17}"


def cases() -> Iterator[Case]:
    """All cases, those of a fault together."""
    for command, (middle, writing, last) in (
        ("train", ("step", "checkpoint", "export")),
        ("evaluate", ("block", "cache", "report")),
    ):
        case = partial(Case, command)
        for fault, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)):
            yield case(fault, middle, code, num_workers=2)
            for moment in MOMENTS[command]:
                yield case(fault, moment, code)
        yield case("SIGINT repeated", middle, 130, num_workers=2)
        for moment in ("setup", writing, last, *(["validation"] if command == "train" else [])):
            yield case("SIGINT repeated", moment, 130)
        for moment in (middle, "setup", f"first {middle}", last):
            yield case("full disk", moment)
        yield case("output folder removed", middle, code=0)
        if command == "evaluate":
            yield case("output folder removed", "report", code=0)
        else:
            yield case("output folder removed", "checkpoint", kept=False)
        yield case("image removed", middle, code=0, identical=command == "evaluate")  # training replaces it
        yield case("images removed", middle)
        yield case("images removed", middle, num_workers=2)
        yield case("second process, same output", middle, code=0)
    yield Case("evaluate", "cache removed", "block", code=0, kept=False)
    yield Case("evaluate", "cache replaced by a file", "block", code=0, kept=False)
    yield Case("evaluate", "second process, same cache", "block", code=0)


def remove_image() -> None:
    """Remove an image of each split; data.away is a copy with it."""
    shutil.copytree("data", "data.away")
    for split in ("train", "val"):
        next(Path("data", split, "3").iterdir()).unlink()


def replace_cache() -> None:
    shutil.rmtree("cache")
    Path("cache").write_text("")


def send_repeatedly() -> None:
    """Send SIGINT three times, as an impatient user does."""
    loop = f"for i in 1 2 3; do kill -INT -{os.getpgrp()}; sleep 0.1; done"
    with subprocess.Popen(["sh", "-c", loop], start_new_session=True):
        time.sleep(10)


def start_second(command: str, folder: str) -> None:
    """Run the same command in another process while this one waits; record how it ends."""
    arguments = [sys.executable, str(ROOT / f"{command}.py"), *SETTINGS[command], f"hydra.run.dir={folder}"]
    second = subprocess.run(arguments, capture_output=True, text=True)
    Path("second.json").write_text(json.dumps([second.returncode, second.stderr.splitlines()]))


FAULTS: dict[str, Callable[[str], Any]] = {
    "SIGINT": lambda command: os.killpg(0, signal.SIGINT),  # a terminal sends it to all processes of a command
    "SIGINT repeated": lambda command: send_repeatedly(),
    "SIGTERM": lambda command: os.kill(os.getpid(), signal.SIGTERM),
    "SIGKILL": lambda command: os.kill(os.getpid(), signal.SIGKILL),
    # The kernel refuses to write more, as on a full disk or under ulimit -f.
    "full disk": lambda command: resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_SIZE, resource.RLIM_INFINITY)),
    "output folder removed": lambda command: shutil.rmtree("run"),
    "image removed": lambda command: remove_image(),
    "images removed": lambda command: os.rename("data", "data.away"),
    "cache removed": lambda command: shutil.rmtree("cache"),
    "cache replaced by a file": lambda command: replace_cache(),
    "second process, same output": lambda command: start_second(command, "run"),
    "second process, same cache": lambda command: start_second(command, "other"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases with one of these texts")
    args = parser.parse_args()
    num_failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        template = Path(tmp) / "template"
        prepare(template)
        for case in cases():
            if any(text in str(case) for text in args.only):
                problems, line = check(case, template, Path(tmp) / "case")
                num_failed += bool(problems)
                print(f"{case} {'; '.join(problems) or 'ok':12} {line}", flush=True)
    print(f"{num_failed} failed")
    sys.exit(num_failed > 0)


def prepare(folder: Path) -> None:
    """Make data/, and by undisturbed commands model/ and results/."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(460):
        path = folder / "data" / ("train" if index < 400 else "val") / str(digits.target[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8)).save(path)
    for command, name in (("train", "model"), ("evaluate", "results")):
        code, _, errors = run(command, folder)
        if code:
            raise RuntimeError(f"{command}.py fails without a fault: {errors}")
        (folder / "run").rename(folder / name)
    shutil.rmtree(folder / "cache")


def check(case: Case, template: Path, folder: Path) -> tuple[list[str], str]:
    """Run a command with a fault, and then again.

    Args:
        case: the fault.
        template: what `prepare` made.
        folder: is created, and removed at the end.

    Returns:
        What is wrong, and the last line that the command with the fault printed.
    """
    shutil.copytree(template, folder)
    try:
        code, output, errors = run(case.command, folder, f"data.num_workers={case.num_workers}", case=case)
        problems = []
        if code != case.code:
            problems.append(f"exit code {code}, not {case.code}")
        if len(errors) != (case.code > 0):
            problems.append(f"{len(errors)} lines on stderr")
        if any("Traceback" in line for line in output):
            problems.append("traceback on stdout")
        moment = MOMENTS[case.command][case.moment]
        if case.kept and (kept := count_kept(case.command, folder)) < moment.kept:
            problems.append(f"{kept} kept, not {moment.kept}")
        problems += check_second(case, folder)
        if (folder / "data.away").exists():
            shutil.rmtree(folder / "data", ignore_errors=True)
            (folder / "data.away").rename(folder / "data")
        if (folder / "cache").is_file():
            (folder / "cache").unlink()
        again, _, again_errors = run(case.command, folder, *(["resume=true"] if case.command == "train" else []))
        if again:
            problems.append(f"again: exit code {again}: {again_errors}")
        elif case.identical:
            problems += difference(case.command, template, folder)
    finally:
        shutil.rmtree(folder)
    return problems, next(reversed(errors or output), "")


def check_second(case: Case, folder: Path) -> list[str]:
    """What is wrong with the end of a second process: only one may write to a folder, many to a cache."""
    if not case.fault.startswith("second"):
        return []
    code, errors = json.loads((folder / "second.json").read_text())
    if case.fault.endswith("cache"):
        return [] if code == 0 else [f"second process: exit code {code}: {errors}"]
    refused = code == 1 and len(errors) == 1 and "another process is writing to" in errors[0]
    return [] if refused else [f"second process: exit code {code}: {errors}"]


def count_kept(command: str, folder: Path) -> int:
    """Steps in last.ckpt, or blocks in the cache."""
    import torch

    if command == "evaluate":
        return len(list((folder / "cache").rglob("[!.]*.npz")))
    checkpoint = folder / "run" / "last.ckpt"
    return int(torch.load(checkpoint, weights_only=True)["global_step"]) if checkpoint.exists() else 0


def difference(command: str, template: Path, folder: Path) -> list[str]:
    """Output files of a command that are missing, or differ from the expected ones."""
    expected = template / ("model" if command == "train" else "results")
    problems = []
    for name in OUTPUTS[command]:
        if not (folder / "run" / name).is_file():
            problems.append(f"{name} is missing")
        elif (folder / "run" / name).read_bytes() != (expected / name).read_bytes():
            problems.append(f"{name} differs")
    return problems


def run(command: str, folder: Path, *settings: str, case: Case | None = None) -> tuple[int, list[str], list[str]]:
    """Run a command in a folder, with or without a fault; return its exit code, and its lines on stdout and stderr."""
    # Forked from a process that has imported the packages, which takes most of the time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning", "nsaug.cli.train", "nsaug.cli.evaluate", "nsaug.evaluation"])
    process = context.Process(target=run_here, args=(command, folder, settings, case))
    process.start()
    process.join()
    assert process.exitcode is not None
    output, errors = ((folder / name).read_text().splitlines() for name in ("stdout", "stderr"))
    return process.exitcode, output, errors


def run_here(command: str, folder: Path, settings: tuple[str, ...], case: Case | None) -> None:
    """Run a command in this process."""
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ["XDG_CACHE_HOME"] = str(folder / "memo")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    sys.argv = [f"{command}.py", *SETTINGS[command], *settings, "hydra.run.dir=run"]
    if case is not None:
        inject(case, MOMENTS[command][case.moment])
    import_module(f"nsaug.cli.{command}").main()


def inject(case: Case, moment: Moment) -> None:
    """Let a fault come at a moment of this process."""
    module, _, path = moment.function.partition(":")
    *parents, name = path.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == moment.number + 1
        if now and not moment.after:
            FAULTS[case.fault](case.command)
        result = function(*args, **kwargs)
        if now and moment.after:
            FAULTS[case.fault](case.command)
        return result

    setattr(owner, name, call)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    main()
