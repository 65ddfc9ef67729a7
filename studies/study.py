"""Does nullspace noise help? Finetune many methods from the same starts, evaluate them, compare.

    python studies/study.py tune --save       # every method at four strengths, on validation images, seed 0, 1, ...
    python studies/study.py variants --save   # settings and variants of nullspace noise, likewise
    python studies/study.py test --save       # every method at its best strength, on test images, seed 100, 101, ...
    python studies/study.py radius --save     # how large nullspace noise can be, on the finished runs of test

    python studies/study.py tune --data imagenette --checkpoint vit_tiny_patch16_224.safetensors data.root=...

Entries are those of studies/entries.py. Stage test reads the best strengths from studies/results/DATA_tune.csv, which
stage tune writes with --save.

On digits, a plain model is pretrained for every seed; on imagenette, a new head is trained on the pretrained
--checkpoint for every seed; on CIFAR-10, all runs start from --checkpoint. Every entry finetunes each start with the
same data and number of steps (except `clean_same_compute`), and suite=DATA_study evaluates all runs. Settings on the
command line apply to every finetuning run or, if they start with `suite.`, to the evaluation.

An interrupted study continues when the same command is typed again: finished runs and cached evaluations are reused,
and a finished run with other settings is an error. Runs are in outputs/study/DATA/runs_val (of tune and variants) and
runs_test, results in outputs/study/DATA/STAGE: summary.md, plots, and in results/ the tables and report of evaluate.py.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from entries import DATA, stage_entries
from omegaconf import DictConfig, OmegaConf
from study_report import BASELINE, choose_strengths, write_report

from nsaug.cli import evaluate, train
from nsaug.cli.compose import compose
from nsaug.cli.errors import format_error
from nsaug.models.weights import WEIGHTS
from nsaug.training.resume import diff_configs

STUDIES = Path(__file__).resolve().parent
ROOT = STUDIES.parent

RUN_SETTINGS = [
    *("logger=csv", "logger.num_images=0", "trainer.enable_progress_bar=false", "val_attack_batches=0"),
    "trainer.limit_val_batches=0",
]
PRETRAINING = {  # settings of the start of every seed
    "digits": ["experiment=digits_pretrain", "data.val_fraction=0.25"],
    "imagenette": ["experiment=imagenette_probe"],
}
SMALL = [
    *("trainer.max_epochs=-1", "trainer.max_steps=100"),
    *("suite.max_images=500", "suite.attacks.pgd.eps=[1/255]", "suite.severities=[3]"),
]
TUNING_SUITE = {  # what is cheaper in stages tune and variants than in stage test
    "cifar10": ["~suite.attacks.pgd_l2", "~suite.attacks.embedding_pgd"],
    "imagenette": [
        *("suite.max_images=200", "suite.attacks.pgd.num_steps=5", "suite.attacks.pgd.eps=[0.25/255,0.5/255,1/255]"),
        *("~suite.attacks.pgd_l2", "~suite.attacks.embedding_pgd"),
    ],
}
RADIUS_SUITE = [
    "suite=nullspace",
    *(f"~suite.analyses.{name}" for name in ("noise", "transfer", "exact")),
    *(f"suite.analyses.radius.{setting}" for setting in ("eps=[0.03]", "num_noises=1", "init_scales=[1,2]")),
]


@dataclass(frozen=True)
class Study:
    """One stage of the study on one data set.

    Attributes:
        data: one of DATA.
        stage: tune, variants, test or radius.
        entries: settings of train.py by the name of the entry.
        seeds: of the finetuning runs.
        split: the images to evaluate on, val or test.
        checkpoint: the start of all runs or, for a data set of PRETRAINING, of their starts.
        settings: additional settings of every run and, with `suite.`, of the evaluation.
        processes: number of processes that run at the same time.
    """

    data: str
    stage: str
    entries: Mapping[str, str]
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
    def runs(self) -> Path:
        return self.root / f"runs_{self.split}"

    @property
    def suite(self) -> list[str]:
        suite = [f"suite={self.data}_study"]
        if self.stage == "radius":
            suite = RADIUS_SUITE
        elif self.stage != "test":
            suite += TUNING_SUITE.get(self.data, [])
        return [*suite, *(setting for setting in self.settings if setting.lstrip("~+").startswith("suite."))]

    @property
    def pretrained(self) -> Path:
        return self.root / "pretrained"

    def training_settings(self) -> dict[Path, list[str]]:
        """Settings of train.py without the seed, by the folder of the runs; the pretrained starts come first."""
        trainer = "trainer=auto" if self.data == "cifar10" else "trainer=cpu"  # digits are slower on a GPU
        extra = [setting for setting in self.settings if not setting.lstrip("~+").startswith("suite.")]
        common = [trainer, *RUN_SETTINGS]
        by_folder, start = {}, self.checkpoint
        if self.data in PRETRAINING:
            given = [] if start is None else [f'checkpoint="{start}"']
            data = [setting for setting in extra if setting.startswith(("data.", "trainer.precision"))]
            by_folder[self.pretrained] = [*common, *PRETRAINING[self.data], *given, *data]
            start = f"{self.pretrained}/seed${{seed}}"
        common += [f"experiment={self.data}_study", f'checkpoint="{start}"']
        for name, settings in self.entries.items():
            by_folder[self.runs / name] = [*common, f"name={name}", *settings.split(), *extra]
        return by_folder

    def finetune(self) -> None:
        """Finetune every entry from the start of every seed, and evaluate all runs."""
        self.check_settings()
        folders = list(self.training_settings())
        if self.pretrained in folders:
            self.run_parallel(lambda seed: self.train(self.pretrained, [seed]), self.seeds)
            folders.remove(self.pretrained)
        self.run_parallel(self.train_and_evaluate, folders)
        self.evaluate_runs([folder / f"seed{seed}" for folder in folders for seed in self.seeds], "results")

    def check_settings(self) -> None:
        """Exit with one line if a command would fail, or if a finished run was trained with other settings."""
        compose_config(evaluate, *self.suite)
        for folder, settings in self.training_settings().items():
            config = compose_config(train, *settings, name=folder.name)
            for seed in self.seeds:
                if is_finished(folder / f"seed{seed}"):
                    config.seed = seed
                    check_same_settings(folder / f"seed{seed}", config)

    def train(self, folder: Path, seeds: Sequence[int]) -> bool:
        """Run what is missing of an entry; return whether anything was."""
        missing = [seed for seed in seeds if not is_finished(folder / f"seed{seed}")]
        if missing:
            seed_setting = f"seed={','.join(map(str, missing))}"
            sweep = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=seed${seed}"]
            self.run_script("train.py", "-m", seed_setting, *self.training_settings()[folder], *sweep)
            print(f"trained {folder.relative_to(self.root)}, {seed_setting}", flush=True)
        return bool(missing)

    def train_and_evaluate(self, folder: Path) -> None:
        """Finish an entry; what is finished already is in the cache of the evaluation of all."""
        part = f"parts/{folder.name}"
        if self.train(folder, self.seeds) or not (self.folder / part / "results.csv").is_file():
            self.evaluate_runs([folder / f"seed{seed}" for seed in self.seeds], part)

    def measure_radius(self) -> None:
        """Evaluate the finished runs of stage test on the radius of their nullspace."""
        compose_config(evaluate, *self.suite)
        files = sorted(self.runs.glob(f"*/seed*/{WEIGHTS}"))
        runs = [file.parent for file in files if file.parent.name in {f"seed{seed}" for seed in self.seeds}]
        if not runs:
            fail("stage radius needs finished runs: run the stage test first")
        self.run_parallel(lambda run: self.evaluate_runs([run], f"parts/{run.parent.name}_{run.name}"), runs)
        self.evaluate_runs(runs, "results")

    def evaluate_runs(self, runs: Sequence[Path], output: str) -> None:
        self.run_script(
            "evaluate.py",
            f"checkpoint=[{','.join(map(str, runs))}]",
            *self.suite,
            *("tracking.wandb=off", "batch_size=360", f"accelerator={'auto' if self.data == 'cifar10' else 'cpu'}"),
            *(f"split={self.split}", f"cache={self.root}/cache", f"hydra.run.dir={self.folder}/{output}"),
        )

    def run_parallel(self, work: Callable[[Any], object], items: Sequence[Any]) -> None:
        """Call `work` for every item, in `processes` threads."""
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(work, items))

    def run_script(self, script: str, *settings: str) -> None:
        """Run a script of this checkout in a process of its own; its output goes to log.txt."""
        log = self.root / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / script), *settings]
        environment = os.environ | {"PYTHONPATH": str(STUDIES)}  # for variants.py
        with open(log, "a") as file:
            print("$ python", script, *settings, file=file, flush=True)
            start = file.tell()
            returncode = subprocess.run(command, stdout=file, stderr=file, check=False, env=environment).returncode
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
    try:
        config = compose(script.__name__.split(".")[-1], settings)
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
    parser.add_argument("stage", choices=["tune", "variants", "test", "radius"])
    parser.add_argument("settings", nargs="*", help="settings of every run of train.py, or suite.*")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--checkpoint", help="start of all runs (default on digits: a pretrained model for every seed)")
    parser.add_argument("--small", action="store_true", help="CIFAR-10 in a few hours of a CPU")
    parser.add_argument("--seeds", type=at_least(1), help="number of seeds (default: 7 on digits, 3 on others)")
    parser.add_argument("--processes", type=at_least(1), default=2, help="number of parallel processes")
    parser.add_argument("--entries", type=lambda text: text.split(","), help="only these: clean,nullspace")
    parser.add_argument("--save", action="store_true", help="write the table to studies/results/DATA_STAGE.csv")
    parser.error = lambda message: fail(f"{message}: see --help")  # type: ignore[method-assign]
    return parser.parse_intermixed_args()


def make_study(args: argparse.Namespace) -> Study:
    """The study of a command line; exits with one line if arguments do not fit together."""
    entries: dict[str, str] = {}
    if args.stage == "radius":
        other = [setting for setting in args.settings if not setting.startswith("suite.")]
        if other or args.entries or args.checkpoint or args.small:
            fail("stage radius evaluates the runs of test: only suite.* settings apply")
    else:
        if args.data != "digits" and args.checkpoint is None:
            start = "a run of experiment=cifar10_pretrain" if args.data == "cifar10" else "weights of ViT-Ti/16"
            fail(f"--checkpoint is missing: name {start}")
        if args.small and args.data != "cifar10":
            fail("--small applies to CIFAR-10: add --data cifar10, or remove it")
        available = choose_strengths(args.data) if args.stage == "test" else stage_entries(args.stage, args.data)
        names = args.entries or list(available)
        if unknown := set(names) - set(available):
            fail(f"--entries {min(unknown)}: choose among {', '.join(available)}")
        if BASELINE not in names:
            fail(f"--entries has no {BASELINE}, which the others are compared with: add it")
        entries = {name: available[name] for name in names}
    first_seed, split = (0, "val") if args.stage in ("tune", "variants") else (100, "test")
    num_seeds = args.seeds or (7 if args.data == "digits" else 3)
    return Study(
        data=args.data,
        stage=args.stage,
        entries=entries,
        seeds=range(first_seed, first_seed + num_seeds),
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
