"""How the cost of training steps and of evaluation grows, beside what theory says.

    python benchmarks/scaling.py                  all axes
    python benchmarks/scaling.py --axes width K

Axes of a step of nullspace noise, on a small ViT with random images: tokens, width, classes, K. A slope is that of a
line through log(time) or log(memory) against log(x): 1 means proportional. Beside it stands the slope of theory: for
time, that of the floating point operations of a forward, which torch counts at the same x; for memory, 1 for tokens
and width, since a step holds their activations, and 0 for K and classes. Steps at small x take longer than their
operations tell, so a slope below theory is usual. K starts at 0; its slope is that of a straight line, in plain steps
for each update: theory says 2/3.

Axes of evaluate.py, on a model for digits: images, strengths, workers. Time is that of the command less that of the
same command with dry_run=true. Theory says 1 for images and strengths, and -1 for workers up to the number of cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from step_cost import Bench
from torch.utils.flop_counter import FlopCounterMode

from nsaug.methods import Clean

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["model.img_size=96", "model.args={depth:4,num_heads:3}"]
STEP_AXES = {  # settings of the model by x
    "tokens": {(size // 16) ** 2 + 1: [f"model.img_size={size}", SMALL[1]] for size in (64, 96, 128, 192, 256)},
    "width": {
        width: [SMALL[0], f"model.args={{depth:4,num_heads:3,embed_dim:{width}}}"] for width in (96, 192, 384, 768)
    },
    "classes": dict.fromkeys((10, 100, 1000, 10000), SMALL),
}
NUM_STEPS = (0, 1, 2, 4, 8)
MEMORY = {"tokens": 1.0, "width": 1.0, "classes": 0.0}
"""Slopes of theory."""
EVALUATION_AXES = {  # setting of evaluate.py, its values by x, and the slope of theory
    "images": ("suite.max_images", {count: str(count) for count in (40, 80, 160, 320)}, 1.0),
    "strengths": (
        "suite.attacks.pgd.eps",
        {count: f"[{','.join(f'{radius}/255' for radius in range(1, count + 1))}]" for count in (1, 2, 4, 8)},
        1.0,
    ),
    "workers": ("devices", {count: str(count) for count in (1, 2)}, -1.0),
}
AXES = ("K", *STEP_AXES, *EVALUATION_AXES)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the line of least squares through log(y) against log(x)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def count_flops(bench: Bench) -> int:
    """Floating point operations of a forward; those of a step are a multiple that does not depend on the model."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        bench.model(bench.images)
    return int(counter.get_total_flops())


def step_axis(name: str, device: str, num_rounds: int) -> str:
    """Time and memory of a step along one axis."""
    benches = {
        x: Bench("vit_ti", device, settings, num_classes=x if name == "classes" else 10)
        for x, settings in STEP_AXES[name].items()
    }
    steps = {x: bench.step(bench.method("nullspace")) for x, bench in benches.items()}
    times: dict[int, list[float]] = {x: [] for x in benches}
    for number in range(num_rounds + 1):
        for x, bench in benches.items():
            seconds = bench.seconds(steps[x])
            if number:  # the first round warms up
                times[x].append(seconds)
    xs = list(benches)
    time_slope = slope(xs, [statistics.median(times[x]) for x in xs])
    memory_slope = slope(xs, [bench.peak_memory(steps[x]) for x, bench in benches.items()])
    flops_slope = slope(xs, [count_flops(bench) for bench in benches.values()])
    return row(name, xs, time_slope, flops_slope, memory_slope, MEMORY[name])


def num_steps_axis(device: str, num_rounds: int) -> str:
    """Time and memory of a step against K, in those of plain steps."""
    bench = Bench("vit_ti", device, SMALL)
    plain_step = bench.step(Clean())
    steps = [bench.step(bench.method(f"nullspace nullspace.num_steps={k}")) for k in NUM_STEPS]
    ratios = []
    for _ in range(num_rounds + 1):
        plain = bench.seconds(plain_step)
        ratios.append([bench.seconds(step) / plain for step in steps])
    times = np.median(ratios[1:], axis=0)
    memory = [bench.peak_memory(step) / bench.peak_memory(plain_step) for step in steps]
    return row("K", NUM_STEPS, np.polyfit(NUM_STEPS, times, 1)[0], 2 / 3, np.polyfit(NUM_STEPS, memory, 1)[0], 0.0)


def evaluation_axis(name: str, run: Path, num_rounds: int) -> str:
    """Time of an evaluation along one axis."""
    key, values, theory = EVALUATION_AXES[name]
    times: dict[int, list[float]] = {x: [] for x in values}
    for _ in range(num_rounds):
        for x, value in values.items():
            start = evaluate_seconds(run, f"{key}={value}", "dry_run=true")
            times[x].append(evaluate_seconds(run, f"{key}={value}") - start)
    xs = list(values)
    return row(name, xs, slope(xs, [statistics.median(times[x]) for x in xs]), theory)


def evaluate_seconds(run: Path, *settings: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = [f"cache={folder}/cache", f"hydra.run.dir={folder}/out", "tracking.wandb=off"]
        suite = ["suite=clean", "+suite.attacks.pgd={num_steps:100,eps:[8/255,16/255]}", "accelerator=cpu"]
        start = time.perf_counter()
        run_script("evaluate.py", f"checkpoint={run}", *suite, *settings, *output)
        return time.perf_counter() - start


def run_script(script: str, *settings: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, ROOT / script, *settings], capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(f"python {script} failed: {result.stderr}")


def row(
    name: str,
    x: Sequence[float],
    time_slope: float,
    time_theory: float,
    memory_slope: float | None = None,
    memory_theory: float | None = None,
) -> str:
    memory = "" if memory_slope is None else f"{memory_slope:8.2f} {memory_theory:8.2f}"
    return f"{name:10} {time_slope:8.2f} {time_theory:8.2f} {memory:17}   {', '.join(map(str, x))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'axis':10} {'time':>8} {'theory':>8} {'memory':>8} {'theory':>8}   values, on {device}")
    with tempfile.TemporaryDirectory() as folder:
        if set(args.axes) & set(EVALUATION_AXES):
            settings = ["experiment=digits_pretrain", "trainer.max_epochs=1", "trainer=cpu", "logger=none"]
            run_script("train.py", *settings, f"hydra.run.dir={folder}/run")
        for axis in args.axes:
            if axis == "K":
                line = num_steps_axis(device, args.rounds)
            elif axis in STEP_AXES:
                line = step_axis(axis, device, args.rounds)
            else:
                line = evaluation_axis(axis, Path(folder, "run"), args.rounds)
            print(line, flush=True)


if __name__ == "__main__":
    main()
