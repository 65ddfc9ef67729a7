"""Does nullspace noise help? Each claim as runs from the same starts, compared on the summary score.

    python benchmarks/study.py choose        settings of the noise, one factor at a time, on the validation images
    python benchmarks/study.py confirm       every method as chosen, fresh seeds, on the test images (make study)
    python benchmarks/study.py curves        over ε, limit and K, about the defaults, likewise
    python benchmarks/study.py radius        how large nullspace noise gets on the models of confirm and curves
    python benchmarks/study.py confirm --data cifar10 --seeds 5 --checkpoint outputs/... data.root=/datasets/cifar10
    python benchmarks/study.py confirm --data cifar10 --small ...      for a CPU: 150 steps, 500 images, see SMALL

Digits: a plain model is pretrained for each seed, CIFAR-10: all start from the checkpoint. Each start is finetuned by
every entry of a list with the same data and number of steps (`clean_same_compute`: as much compute as nullspace
finetuning), and all are judged by suite=digits_study or cifar10_study. Further settings go to every finetuning, or,
such as suite.max_images=500, to the suite. Two processes work side by side. What was trained or judged before is not
repeated: a study that was stopped goes on, with the same settings. Each stage ends with its summary.md, in
outputs/study/digits/choose and the like; tables, all paired differences and the report are in results/ there.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from study_report import finished, report

from nsaug.cli.app import format_error
from nsaug.models.weights import WEIGHTS
from nsaug.training.resume import diff_configs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from nsaug.cli import evaluate, train  # noqa: E402

QUIET = ["logger=csv", "logger.num_images=0", "trainer.enable_progress_bar=false", "val_attack_batches=0"]

METHODS = {
    "clean": "",
    "clean_two_views": "",
    "clean_same_compute": "",
    "nullspace": "",
    "nullspace_paper": "method=nullspace nullspace=epoch",
    "random_noise": "",
    "random_noise_influence": "method=random_noise method.match=influence",
    "random_noise_start": "method=random_noise method.match=start nullspace.limit=1",  # its best one
    "fgsm_rs": "",
    "pgd": "method=pgd attack.eps={best}",
    "pgd_3_steps": "method=pgd attack.eps={best} method.attack.num_steps=3",  # costs less than the noise
    "trades": "",
}
CENTRE = "nullspace.limit=0.5 nullspace.eps=0.3 nullspace.floor=0.5 nullspace.lr=0.1 nullspace.steps=3"
FACTORS = {
    "clean": "method=clean",
    "centre": "",
    "scope_batch": "nullspace=batch",
    "floor_0": "nullspace.floor=0",
    "floor_0.9": "nullspace.floor=0.9",
    "eps_0.03": "nullspace.eps=0.03",
    "eps_0.1": "nullspace.eps=0.1",
    "eps_1": "nullspace.eps=1",
    "limit_0.25": "nullspace.limit=0.25",
    "limit_1": "nullspace.limit=1",
    "limit_3": "nullspace.limit=3",
    "lr_0.3": "nullspace.lr=0.3",
    "limit_0.25_lr_0.3": "nullspace.limit=0.25 nullspace.lr=0.3",
    "eps_0.03_limit_0.25": "nullspace.eps=0.03 nullspace.limit=0.25",
    "eps_0.03_limit_0.25_steps_1": "nullspace.eps=0.03 nullspace.limit=0.25 nullspace.steps=1",
    "steps_1": "nullspace.steps=1",
    "steps_10": "nullspace.steps=10",
    "norm_held": "nullspace.norm=held",
    "warm": "nullspace.init=warm",
    "site_block_1": "nullspace.layer=blocks.1",
    "weight_0.5": "method.weight=0.5",
    "weight_2": "method.weight=2",
    "consistency": "method.consistency=1 method.consistency_of=kl",
    "growth": "nullspace.floor=0 nullspace.growth=1.3",
    "paper": "nullspace=epoch",
    "random_norm": "method=random_noise",
    "random_influence": "method=random_noise method.match=influence",
    "random_start": "method=random_noise method.match=start",
    "random_start_limit_1": "method=random_noise method.match=start nullspace.limit=1",
    "random_start_limit_3": "method=random_noise method.match=start nullspace.limit=3",
    "pgd": "method=pgd",
    "pgd_half": "method=pgd attack.eps={half}",
    "pgd_double": "method=pgd attack.eps={double}",
    "pgd_3_steps": "method=pgd method.attack.num_steps=3",
    "pgd_3_steps_half": "method=pgd method.attack.num_steps=3 attack.eps={half}",
    "pgd_3_steps_double": "method=pgd method.attack.num_steps=3 attack.eps={double}",
    "trades": "method=trades",
    "trades_half": "method=trades attack.eps={half}",
    "trades_double": "method=trades attack.eps={double}",
}
RADII = {
    "digits": {"half": "4/255", "double": "16/255", "best": "16/255"},
    "cifar10": {"half": "1/510", "double": "2/255", "best": "1/255"},
}
"""Of PGD in training: beside that of conf/experiment, and the best on the validation images
(on CIFAR-10 only that and its half were tried, with three steps)."""
SMALL = ["trainer.max_epochs=-1", "trainer.max_steps=150", "trainer.limit_val_batches=0"]
SMALL += ["suite.max_images=500", "suite.eps=[1/255]", "suite.severities=[3]"]
CURVES = {
    "eps": (0.01, 0.03, 0.1, 0.3, 0.6, 1.0),
    "limit": (0.25, 0.5, 1.0, 3.0),
    "steps": (1, 3, 10, 30),
}
RADIUS = ["suite=nullspace", *(f"~suite.benchmarks.{name}" for name in ("clean", "noise", "transfer", "exact"))]
RADIUS += ["suite.eps=[0.03]", "suite.benchmarks.radius.num_noises=1", "suite.benchmarks.radius.init_scales=[1,2]"]


class Study:
    """One stage of a study on one data set.

    Args:
        told: the command line.
        entries: by name, what each is finetuned with beyond what all are.
        split: what is judged.
        seeds: those of the finetunings.
    """

    def __init__(self, told: argparse.Namespace, entries: dict[str, list[str]], split: str, seeds: range) -> None:
        self.told, self.entries, self.split, self.seeds = told, entries, split, seeds
        self.root = Path("outputs", "study", told.data)
        self.folder = self.root / told.stage
        self.suite = [setting for setting in told.settings if setting.startswith("suite.")]
        self.settings = [setting for setting in told.settings if setting not in self.suite]
        on_cpu = told.data == "digits"  # a GPU is slower at it
        self.trainer, self.device = ("trainer=cpu", "device=cpu") if on_cpu else ("trainer=auto", "device=auto")

    def runs(self) -> dict[Path, list[str]]:
        """By folder, what the runs in it are trained with, whatever their seed, in the order in which they can be."""
        start, told = self.told.checkpoint, {}
        if start is None:
            start = f"{self.root}/pretrained/seed${{seed}}"
            told[self.root / "pretrained"] = ["experiment=digits_pretrain", "data.val_fraction=0.25"]
        for name, settings in self.entries.items():
            same = [f"experiment={self.told.data}_study", f'checkpoint="{start}"', f"name={name}"]
            told[self.folder / name] = [*same, *settings, *self.settings]
        return {folder: [self.trainer, *QUIET, *words] for folder, words in told.items()}

    def check_settings(self) -> None:
        """Refuses what the scripts would, and settings that differ from those of runs that are there already."""
        check(evaluate, f"suite={self.told.data}_study", *self.suite)
        for folder, words in self.runs().items():
            now = check(train, *words, name=folder.name)
            for seed in self.seeds:
                run = folder / f"seed{seed}"
                if (run / WEIGHTS).exists():
                    now.seed = seed
                    refuse_other_settings(run, now)

    def side_by_side(self, work: Callable[[list[Any]], None], of: list[Any]) -> None:
        """Each process does its share."""
        shares = [share for number in range(self.told.processes) if (share := of[number :: self.told.processes])]
        with ThreadPoolExecutor(self.told.processes) as pool:
            list(pool.map(work, shares))

    def finetune(self) -> None:
        """Every entry from the start of every seed; all are judged."""
        self.check_settings()
        self.side_by_side(self.finetune_some, list(self.seeds))
        self.judge(self.seeds, "results")

    def finetune_some(self, seeds: list[int]) -> None:
        for folder, words in self.runs().items():
            self.train(folder, seeds, *words)
        self.judge(seeds, f"part{seeds[0]}")

    def train(self, folder: Path, seeds: list[int], *settings: str) -> None:
        """The runs of those seeds that are not there yet, in one process."""
        missing = [seed for seed in seeds if not (folder / f"seed{seed}" / WEIGHTS).exists()]
        if missing:
            told = f"seed={','.join(map(str, missing))}"
            sweep = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=seed${seed}"]
            self.script("train.py", "-m", told, *settings, *sweep)
            print(f"trained {folder.relative_to(self.root)}, {told}", flush=True)

    def judge(self, seeds: Iterable[int], name: str) -> None:
        runs = [self.folder / entry / f"seed{seed}" for entry in self.entries for seed in seeds]
        self.evaluate(runs, name, f"suite={self.told.data}_study", f"split={self.split}", *self.suite)

    def radius(self) -> None:
        """Of the models of the stages that are done, in place of any of its own."""
        if self.settings or self.told.entries or self.told.checkpoint:
            raise SystemExit("error: radius is of the models of confirm and curves: leave out all but suite.*")
        suite = [*RADIUS, *self.suite]
        check(evaluate, *suite)
        found: dict[tuple[str, str], Path] = {}
        for stage in finished(self.root):
            for seed in self.seeds:
                for file in sorted(stage.glob(f"*/seed{seed}/{WEIGHTS}")):
                    found.setdefault(file.parts[-3:-1], file.parent)  # stages share clean and nullspace: the first's
        runs = list(found.values())
        if not runs:
            raise SystemExit("error: radius is of the models of confirm and curves: run one of them first")
        self.side_by_side(lambda share: self.evaluate(share, f"part{runs.index(share[0])}", *suite), runs)
        self.evaluate(runs, "results", *suite)

    def evaluate(self, runs: list[Path], name: str, *suite: str) -> None:
        where = [f"hydra.run.dir={self.folder}/{name}", f"cache={self.root}/cache", self.device]
        told = [f"checkpoint=[{','.join(map(str, runs))}]", "tracking.wandb=off", "batch_size=360"]
        self.script("evaluate.py", *told, *suite, *where)

    def script(self, name: str, *arguments: str) -> None:
        log = self.root / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            print("$ python", name, *arguments, file=file, flush=True)
            before = file.tell()
            done = subprocess.run([sys.executable, str(ROOT / name), *arguments], stdout=file, stderr=file, check=False)
        if done.returncode:
            said = [line for line in log.read_bytes()[before:].decode().splitlines() if line.startswith("error: ")]
            why = said[-1].removeprefix("error: ") if said else f"the end of {log} says why"
            # At once: the other process may go on for hours.
            print(f"error: python {name} failed: {why}", file=sys.stderr, flush=True)
            raise SystemExit(1)


def entries_of(stage: str, data: str) -> dict[str, list[str]]:
    """By name, the settings of a stage's finetunings."""
    if stage == "choose":
        told = {}
        for name, other in FACTORS.items():
            centre = "" if other == "nullspace=epoch" else CENTRE
            told[name] = f"method=nullspace {centre} {other}".format(**RADII[data])
    elif stage == "confirm":
        told = {name: f"method={name} {other}".format(**RADII[data]) for name, other in METHODS.items()}
    else:
        default = OmegaConf.load(ROOT / "conf" / "nullspace" / "sample.yaml")
        told = {"clean": "method=clean", "nullspace": "method=nullspace"}
        for key, values in CURVES.items():
            others = [value for value in values if value != default[key]]
            told |= {f"{key}_{value:g}": f"method=nullspace nullspace.{key}={value:g}" for value in others}
    return {name: words.split() for name, words in told.items()}  # what is told twice holds as it is told last


def check(script: ModuleType, *words: str, name: str = "suite") -> DictConfig:
    """The configuration that a script makes of these words; exits with one line where it refuses them."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            composed = compose(script.__name__.split(".")[-1], list(words))
            script.check_settings(composed)
        except Exception as error:
            raise SystemExit(f"error: {name}: {format_error(error)}") from None
    return composed


def refuse_other_settings(run: Path, now: DictConfig) -> None:
    """Exits where a run was trained with something else than `now`, the start included."""
    before = OmegaConf.load(run / ".hydra" / "config.yaml")
    told = (OmegaConf.to_container(each, resolve=True) for each in (before, now))
    for key, theirs, ours in diff_configs(*told):
        raise SystemExit(
            f"error: {run} was trained with {key}={theirs}, this command says {ours}: type the command that made it, or"
            f" remove {run.parent}"
        )


def count(least: int) -> Callable[[str], int]:
    """A number on the command line that is no smaller than this."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is too few: {least} at least")
        return value

    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["choose", "confirm", "curves", "radius"])
    parser.add_argument("settings", nargs="*", help="of every finetuning, as train.py takes them, or suite.*")
    parser.add_argument("--data", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--checkpoint", help="the run that all start from; digits pretrain their own")
    parser.add_argument("--small", action="store_true", help="CIFAR-10 within hours of a CPU")
    parser.add_argument("--seeds", type=count(2), default=10, help="of one there would be no interval")
    parser.add_argument("--processes", type=count(1), default=2)
    parser.add_argument(
        "--entries", type=lambda text: text.split(","), help="of the stage's, these alone: clean,nullspace"
    )
    told = parser.parse_intermixed_args()
    if told.data == "cifar10" and told.checkpoint is None and told.stage != "radius":
        raise SystemExit("error: --checkpoint is missing: name a run of experiment=cifar10_pretrain")
    if told.small and told.data != "cifar10":
        raise SystemExit("error: --small is of CIFAR-10: add --data cifar10, or leave it out")
    told.settings = [*(SMALL if told.small else ()), *told.settings]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    first, split = (0, "val") if told.stage == "choose" else (100, "test")
    seeds = range(first, first + told.seeds)
    if told.stage == "radius":
        study = Study(told, {}, split, seeds)
        study.radius()
    else:
        entries = entries_of(told.stage, told.data)
        chosen = told.entries or list(entries)
        if unknown := set(chosen) - set(entries):
            raise SystemExit(f"error: --entries {min(unknown)}: choose among {', '.join(entries)}")
        for needed in ("clean", "nullspace") if told.stage == "curves" else ("clean",):
            if needed not in chosen:
                raise SystemExit(f"error: --entries lacks {needed}, with which the others are compared: add it")
        study = Study(told, {name: entries[name] for name in chosen}, split, seeds)
        study.finetune()
    print(report(study.folder))


if __name__ == "__main__":
    main()
