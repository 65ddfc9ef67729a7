"""Does nullspace noise help? Each claim as runs from the same starts, compared on the summary score.

    python benchmarks/study.py choose        settings of the noise, one factor at a time, on the validation images
    python benchmarks/study.py confirm       every method at its defaults, fresh seeds, on the test images (make study)

Digits: `--seeds` plain models are pretrained, each is finetuned by every entry of a list with the same data and number
of steps (`clean_same_compute`: as much compute as nullspace finetuning), and all are judged by suite=digits_study. Two
processes work side by side. What was trained or judged before is not repeated: a study that was stopped goes on.
Tables, paired differences and the report are in outputs/study/choose or outputs/study/confirm.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["logger=csv", "logger.pictures=0", "trainer=cpu", "trainer.enable_progress_bar=false", "attacked_batches=0"]

HOLDOUT = "data.holdout=0.25"  # 360 images: as many to choose by as there are to test on

METHODS = {
    "clean": "",
    "clean_two_views": "",
    "clean_same_compute": "",
    "nullspace": "",
    "nullspace_paper": "method=nullspace nullspace=epoch",
    "random_noise": "",
    "random_noise_influence": "method=random_noise method.match=influence",
    "random_noise_start": "method=random_noise method.match=start",
    "fgsm_rs": "attack.eps=8/255",
    "pgd": "attack.eps=8/255",
    "trades": "attack.eps=8/255",
}
CENTRE = "nullspace.limit=0.5 nullspace.eps=0.3 nullspace.floor=0.15 nullspace.lr=0.1 nullspace.steps=3"
FACTORS = {
    "clean": "method=clean",
    "centre": "",
    "scope_batch": "nullspace=batch",
    "floor_0": "nullspace.floor=0",
    "floor_0.27": "nullspace.floor=0.27",
    "eps_0.03": "nullspace.eps=0.03 nullspace.floor=0.015",
    "eps_0.1": "nullspace.eps=0.1 nullspace.floor=0.05",
    "eps_1": "nullspace.eps=1 nullspace.floor=0.5",
    "limit_0.25": "nullspace.limit=0.25",
    "limit_1": "nullspace.limit=1",
    "limit_3": "nullspace.limit=3",
    "lr_0.3": "nullspace.lr=0.3",
    "limit_0.25_lr_0.3": "nullspace.limit=0.25 nullspace.lr=0.3",
    "steps_1": "nullspace.steps=1",
    "steps_10": "nullspace.steps=10",
    "norm_held": "nullspace.norm=held",
    "warm": "nullspace.init=warm",
    "site_block_1": "nullspace.site=blocks.1",
    "consistency": "method.consistency=1 method.consistency_of=kl",
    "growth": "nullspace.floor=0 nullspace.growth=1.3",
    "paper": "nullspace=epoch",
    "random_norm": "method=random_noise",
    "random_influence": "method=random_noise method.match=influence",
    "random_start": "method=random_noise method.match=start",
    "random_start_limit_1": "method=random_noise method.match=start nullspace.limit=1",
    "random_start_limit_3": "method=random_noise method.match=start nullspace.limit=3",
}


def script(name: str, *arguments: str) -> None:
    log = ROOT / "outputs" / "study" / "log.txt"
    with open(log, "a") as file:
        print("$ python", name, *arguments, file=file, flush=True)
        done = subprocess.run([sys.executable, name, *arguments], cwd=ROOT, stdout=file, stderr=file, check=False)
    if done.returncode:
        sys.exit(f"error: python {name} failed; the end of {log} says why")


def trained(folder: Path, seeds: list[int], *settings: str) -> None:
    """The runs of those seeds that are not there yet, in one process."""
    missing = [seed for seed in seeds if not (folder / f"seed{seed}" / "model.safetensors").exists()]
    if missing:
        told = f"seed={','.join(map(str, missing))}"
        sweep = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=seed${seed}"]
        script("train.py", "-m", told, *QUIET, HOLDOUT, *settings, *sweep)
        print(f"trained {folder.relative_to(ROOT)}, {told}", flush=True)


def work(stage: str, entries: dict[str, list[str]], seeds: list[int], split: str) -> None:
    """One process's share: starts, finetuning from each, judging."""
    study = ROOT / "outputs" / "study"
    trained(study / "pretrained", seeds, "experiment=digits_pretrain")
    start = f'checkpoint="{study}/pretrained/seed${{seed}}"'
    for name, settings in entries.items():
        trained(study / stage / name, seeds, "experiment=digits_finetune", start, f"name={name}", *settings)
    runs = ",".join(f"{study}/{stage}/{name}/seed{seed}" for name in entries for seed in seeds)
    judged(f"[{runs}]", split, study / stage / f"part{seeds[0]}")


def judged(runs: str, split: str, folder: Path) -> None:
    where = [f"hydra.run.dir={folder}", "store=outputs/study/store", "device=cpu", "batch_size=360"]
    script("evaluate.py", f"checkpoint={runs}", "suite=digits_study", f"split={split}", "tracking.wandb=off", *where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["choose", "confirm"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = ROOT / "outputs" / "study"
    study.mkdir(parents=True, exist_ok=True)
    if options.stage == "choose":
        centre = {name: "" if told == "nullspace=epoch" else CENTRE for name, told in FACTORS.items()}
        entries = {name: f"method=nullspace {centre[name]} {told}".split() for name, told in FACTORS.items()}
        first, split = 0, "val"
    else:
        entries = {name: [f"method={name}", *told.split()] for name, told in METHODS.items()}
        first, split = 100, "test"
    for told in entries.values():  # the later one counts, and Hydra takes no setting twice
        last = {word.split("=")[0]: word for word in told}
        told[:] = last.values()
    seeds = list(range(first, first + options.seeds))
    parts = [part for number in range(options.processes) if (part := seeds[number :: options.processes])]
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda part: work(options.stage, entries, part, split), parts))
    runs = ",".join(f"{study}/{options.stage}/{name}/seed{seed}" for name in entries for seed in seeds)
    judged(f"[{runs}]", split, study / options.stage / "results")
    print((study / options.stage / "results" / "results.md").read_text())


if __name__ == "__main__":
    main()
