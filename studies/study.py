"""Does nullspace noise help? Finetune many methods from the same starts, evaluate them, compare.

    python studies/study.py tune      # settings of every method: validation split, seeds 0 to 9
    python studies/study.py test      # every method as tuned: test split, seeds 100 to 109 (make study)
    python studies/study.py curves    # over eps, init_scale and num_steps, one at a time; split and seeds as in test
    python studies/study.py radius    # how large nullspace noise can be, on the finished runs of test and curves
    python studies/study.py test --data cifar10 --seeds 5 --checkpoint outputs/... data.root=/datasets/cifar10
    python studies/study.py test --data cifar10 --small ...    # for a CPU: 150 steps, 500 images, see SMALL
    python studies/study.py test --save                        # also writes studies/results/digits_test.csv

On digits, a plain model is pretrained for every seed; on CIFAR-10, all runs start from --checkpoint. Every entry of a
stage finetunes each start with the same data and number of steps (except `clean_same_compute`), and suite=digits_study
or cifar10_study evaluates all runs. Settings on the command line apply to every finetuning run or, if they start with
`suite.`, to the evaluation.

An interrupted study continues when the same command is typed again: finished runs and cached evaluations are reused,
and a finished run with other settings is an error. Results are in outputs/study/DATA/STAGE: summary.md, plots, and in
results/ the tables and report of evaluate.py.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from study_report import BASELINE, default_settings, finished_stages, write_report

from nsaug.cli import evaluate, train
from nsaug.cli.errors import format_error
from nsaug.models.weights import WEIGHTS
from nsaug.training.resume import diff_configs

ROOT = Path(__file__).resolve().parents[1]

METHODS = {
    "clean": "method=clean",
    "clean_two_views": "method=clean_two_views",
    "clean_same_compute": "method=clean_same_compute",
    "nullspace": "method=nullspace",
    "nullspace_paper": "method=nullspace nullspace=universal",
    "random_noise": "method=random_noise",
    "random_noise_influence": "method=random_noise method.noise.match=influence",
    "random_noise_init": "method=random_noise method.noise.match=init nullspace.init_scale=1",  # its best size
    "fgsm_rs": "method=fgsm_rs",
    "pgd": "method=pgd attack.eps={best}",
    "pgd_3_steps": "method=pgd attack.eps={best} method.attack.num_steps=3",  # costs less than the noise
    "trades": "method=trades",
}
"""Entries of stage test."""

NOISE_SETTINGS = [
    *((eps, init_scale, 1) for eps in (0.03, 0.1, 0.3) for init_scale in (0.1, 0.25)),
    *((eps, init_scale, 3) for eps in (0.03, 0.1, 0.3) for init_scale in (0.1, 0.25, 0.5)),
    *((0.03, 0.1, 6), (0.03, 1, 3)),
]
"""eps, init_scale and num_steps of nullspace noise in stage tune."""
TUNING_RUNS = {
    "clean": "method=clean",
    **{
        f"eps_{eps:g}_init_{scale:g}_steps_{steps}": (
            f"method=nullspace nullspace.eps={eps:g} nullspace.init_scale={scale:g} nullspace.num_steps={steps}"
        )
        for eps, scale, steps in NOISE_SETTINGS
    },
    "per_batch": "method=nullspace nullspace=per_batch",
    "paper": "method=nullspace nullspace=universal",
    "kl_1": "method=nullspace method.kl_weight=1",
    "kl_3": "method=nullspace method.kl_weight=3",
    "random_init_1": "method=random_noise method.noise.match=init nullspace.init_scale=1",
    "random_influence": "method=random_noise method.noise.match=influence",
    "random_influence_eps_0.3": "method=random_noise method.noise.match=influence nullspace.eps=0.3",
    "random_norm": "method=random_noise",
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
"""Entries of stage tune."""

CURVES = {
    "eps": (0.01, 0.03, 0.1, 0.3, 0.6, 1.0),
    "init_scale": (0.05, 0.1, 0.25, 0.5, 1.0),
    "num_steps": (1, 3, 6, 10),
}
"""Values of the settings of nullspace noise in stage curves; the others keep their defaults."""

ATTACK_RADII = {
    "digits": {"half": "4/255", "double": "16/255", "best": "16/255"},
    "cifar10": {"half": "1/510", "double": "2/255", "best": "1/255"},
}
"""Radii of adversarial training, relative to that of conf/experiment, and the best one in stage tune.

On CIFAR-10, stage tune was run with the default radius and half of it only, with three steps.
"""

RUN_SETTINGS = ["logger=csv", "logger.num_images=0", "trainer.enable_progress_bar=false", "val_attack_batches=0"]
SMALL = [
    *("trainer.max_epochs=-1", "trainer.max_steps=150", "trainer.limit_val_batches=0"),
    *("suite.max_images=500", "suite.attacks.pgd.eps=[1/255]", "suite.severities=[3]"),
]
RADIUS_SUITE = [
    "suite=nullspace",
    *(f"~suite.analyses.{name}" for name in ("noise", "transfer", "exact")),
    *(f"suite.analyses.radius.{setting}" for setting in ("eps=[0.03]", "num_noises=1", "init_scales=[1,2]")),
]


def stage_entries(stage: str, data: str) -> dict[str, list[str]]:
    """Settings of train.py for every entry of a stage, by name."""
    if stage == "curves":
        default = default_settings()
        entries = {"clean": "method=clean", "nullspace": "method=nullspace"}
        for key, values in CURVES.items():
            for value in values:
                if value != default[key]:  # that is the entry nullspace
                    entries[f"{key}_{value:g}"] = f"method=nullspace nullspace.{key}={value:g}"
    else:
        entries = METHODS if stage == "test" else TUNING_RUNS
    return {name: settings.format(**ATTACK_RADII[data]).split() for name, settings in entries.items()}


@dataclass(frozen=True)
class Study:
    """One stage of the study on one data set.

    Attributes:
        data: digits or cifar10.
        stage: tune, test, curves or radius.
        entries: settings of train.py by the name of the entry.
        seeds: of the finetuning runs.
        split: the images to evaluate on, val or test.
        checkpoint: the start of all runs; None: a pretrained model for every seed.
        settings: additional settings of every finetuning run and, with `suite.`, of the evaluation.
        processes: number of processes that run at the same time.
    """

    data: str
    stage: str
    entries: dict[str, list[str]]
    seeds: range
    split: str
    checkpoint: str | None = None
    settings: Sequence[str] = ()
    processes: int = 1

    @property
    def root(self) -> Path:
        return Path("outputs", "study", self.data)

    @property
    def folder(self) -> Path:
        return self.root / self.stage

    @property
    def suite(self) -> list[str]:
        suite = RADIUS_SUITE if self.stage == "radius" else [f"suite={self.data}_study"]
        return [*suite, *(setting for setting in self.settings if setting.startswith("suite."))]

    def training_settings(self) -> dict[Path, list[str]]:
        """Settings of train.py without the seed, by the folder of the runs; the pretrained starts come first."""
        trainer = "trainer=cpu" if self.data == "digits" else "trainer=auto"  # digits are slower on a GPU
        common = [trainer, *RUN_SETTINGS]
        by_folder = {}
        start = self.checkpoint
        if start is None:
            start = f"{self.root}/pretrained/seed${{seed}}"
            by_folder[self.root / "pretrained"] = [*common, "experiment=digits_pretrain", "data.val_fraction=0.25"]
        common += [f"experiment={self.data}_study", f'checkpoint="{start}"']
        extra = [setting for setting in self.settings if not setting.startswith("suite.")]
        for name, settings in self.entries.items():
            by_folder[self.folder / name] = [*common, f"name={name}", *settings, *extra]
        return by_folder

    def finetune(self) -> None:
        """Finetune every entry from the start of every seed, and evaluate all runs."""
        self.check_settings()
        self.run_parallel(self.finetune_seeds, list(self.seeds))
        self.evaluate_seeds(self.seeds, "results")  # one table of all; everything is cached by now

    def check_settings(self) -> None:
        """Exit with one line if a command would fail, or if a finished run was trained with other settings."""
        compose_config(evaluate, *self.suite)
        for folder, settings in self.training_settings().items():
            config = compose_config(train, *settings, name=folder.name)
            for seed in self.seeds:
                if is_finished(folder / f"seed{seed}"):
                    config.seed = seed
                    check_same_settings(folder / f"seed{seed}", config)

    def finetune_seeds(self, seeds: list[int]) -> None:
        for folder, settings in self.training_settings().items():
            missing = [seed for seed in seeds if not is_finished(folder / f"seed{seed}")]
            if missing:
                seed_setting = f"seed={','.join(map(str, missing))}"
                sweep = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=seed${seed}"]
                self.run_script("train.py", "-m", seed_setting, *settings, *sweep)
                print(f"trained {folder.relative_to(self.root)}, {seed_setting}", flush=True)
        self.evaluate_seeds(seeds, f"part{seeds[0]}")

    def evaluate_seeds(self, seeds: Sequence[int], output: str) -> None:
        runs = [self.folder / name / f"seed{seed}" for name in self.entries for seed in seeds]
        self.evaluate_runs(runs, output, f"split={self.split}")

    def measure_radius(self) -> None:
        """Evaluate the finished runs of test and curves on the radius of their nullspace."""
        compose_config(evaluate, *self.suite)
        runs: dict[tuple[str, str], Path] = {}
        for stage in finished_stages(self.root):
            for seed in self.seeds:
                for file in sorted(stage.glob(f"*/seed{seed}/{WEIGHTS}")):
                    entry, run = file.parts[-3:-1]
                    runs.setdefault((entry, run), file.parent)  # both stages have clean and nullspace
        if not runs:
            fail("stage radius needs finished runs: run the stage test or curves first")
        folders = list(runs.values())
        self.run_parallel(lambda share: self.evaluate_runs(share, f"part{folders.index(share[0])}"), folders)
        self.evaluate_runs(folders, "results")

    def evaluate_runs(self, runs: Sequence[Path], output: str, *settings: str) -> None:
        self.run_script(
            "evaluate.py",
            f"checkpoint=[{','.join(map(str, runs))}]",
            *self.suite,
            *settings,
            *("tracking.wandb=off", "batch_size=360", f"accelerator={'cpu' if self.data == 'digits' else 'auto'}"),
            *(f"cache={self.root}/cache", f"hydra.run.dir={self.folder}/{output}"),
        )

    def run_parallel(self, work: Callable[[list[Any]], None], items: list[Any]) -> None:
        """Call `work` in `processes` threads, with a share of the items each."""
        shares = [share for first in range(self.processes) if (share := items[first :: self.processes])]
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(work, shares))

    def run_script(self, script: str, *settings: str) -> None:
        """Run a script of this checkout in a process of its own; its output goes to log.txt."""
        log = self.root / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / script), *settings]
        with open(log, "a") as file:
            print("$ python", script, *settings, file=file, flush=True)
            start = file.tell()
            returncode = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        if returncode:
            lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            reason = errors[-1] if errors else f"see the end of {log}"
            # Printed now: the exception of a thread is raised only after the other threads have finished.
            print(f"error: python {script} failed: {reason}", file=sys.stderr, flush=True)
            raise SystemExit(1)


def is_finished(run: Path) -> bool:
    return (run / WEIGHTS).exists()


def compose_config(script: ModuleType, *settings: str, name: str = "suite") -> DictConfig:
    """The checked configuration of a script with these settings; exits with one line if they are wrong."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            config = compose(script.__name__.split(".")[-1], list(settings))
            script.check_settings(config)
        except Exception as error:
            fail(f"{name}: {format_error(error)}")
    return config


def check_same_settings(run: Path, config: DictConfig) -> None:
    """Exit with one line if a finished run was trained with other settings or from another start."""
    recorded: Any = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "config.yaml"), resolve=True)
    current: Any = OmegaConf.to_container(config, resolve=True)
    for key, old, new in diff_configs(recorded, current):
        fail(
            f"{run} was trained with {key}={old}, this command has {new}: type the command of that run, or remove"
            f" {run.parent}"
        )


def fail(message: str) -> NoReturn:
    raise SystemExit(f"error: {message}")


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer that is not below `minimum`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small: type {minimum} or more")
        return value

    return integer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "test", "curves", "radius"])
    parser.add_argument("settings", nargs="*", help="settings of every run of train.py, or suite.*")
    parser.add_argument("--data", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--checkpoint", help="start of all runs (default on digits: a pretrained model for every seed)")
    parser.add_argument("--small", action="store_true", help="CIFAR-10 in a few hours of a CPU")
    parser.add_argument("--seeds", type=at_least(2), default=10, help="number of seeds; two or more, for intervals")
    parser.add_argument("--processes", type=at_least(1), default=2, help="number of parallel processes")
    parser.add_argument("--entries", type=lambda text: text.split(","), help="only these: clean,nullspace")
    parser.add_argument("--save", action="store_true", help="write the table to studies/results/DATA_STAGE.csv")
    parser.error = lambda message: fail(f"{message}: see --help")  # type: ignore[method-assign]
    return parser.parse_intermixed_args()


def make_study(args: argparse.Namespace) -> Study:
    """The study of a command line; exits with one line if arguments do not fit together."""
    if args.stage == "radius":
        other = [setting for setting in args.settings if not setting.startswith("suite.")]
        if other or args.entries or args.checkpoint or args.small:
            fail("stage radius evaluates the runs of test and curves: only suite.* settings apply")
        entries = {}
    else:
        if args.data == "cifar10" and args.checkpoint is None:
            fail("--checkpoint is missing: name a run of experiment=cifar10_pretrain")
        if args.small and args.data != "cifar10":
            fail("--small applies to CIFAR-10: add --data cifar10, or remove it")
        available = stage_entries(args.stage, args.data)
        names = args.entries or list(available)
        if unknown := set(names) - set(available):
            fail(f"--entries {min(unknown)}: choose among {', '.join(available)}")
        for needed in (BASELINE, "nullspace") if args.stage == "curves" else (BASELINE,):
            if needed not in names:
                fail(f"--entries has no {needed}, which the others are compared with: add it")
        entries = {name: available[name] for name in names}
    first_seed, split = (0, "val") if args.stage == "tune" else (100, "test")
    return Study(
        data=args.data,
        stage=args.stage,
        entries=entries,
        seeds=range(first_seed, first_seed + args.seeds),
        split=split,
        checkpoint=args.checkpoint,
        settings=[*(SMALL if args.small else ()), *args.settings],
        processes=args.processes,
    )


def main() -> None:
    args = parse_args()
    study = make_study(args)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if study.stage == "radius":
        study.measure_radius()
    else:
        study.finetune()
    print(write_report(study.folder, save=args.save))


if __name__ == "__main__":
    main()
