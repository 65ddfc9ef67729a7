"""What a training step of each method costs, as ratios to what it has to cost.

    python benchmarks/step_cost.py                                         model=micro and model=vit_cifar
    python benchmarks/step_cost.py --models vit_s --methods "nullspace nullspace.steps=1" "naive 1" --rounds 20
    python benchmarks/step_cost.py --models vit_cifar vit_s --check        exits 1 where a bar is missed

Models and methods are those of conf/; a method may be followed by further settings. `naive K` is nullspace finetuning
as it is written down: each of K refinements computes the clean logits anew, and its backward goes through everything.

In each round every step is taken once, after a plain one, in one process; noise never gets below eps early (but for the
noise that is scaled to it). Columns, each the median of the rounds, of the first with its quartiles:

- plain: over the plain step's time;
- counted: what that ratio is when forward, backward to activations and backward to weights count 1 each: (6 + 2 K) / 3
  for nullspace noise;
- ideal: over two plain steps and K times a forward and a gradient to the noise, each timed alone in the same round;
- naive: how many times faster than the naive step of the same K;
- memory: the most that is allocated at once beyond what was there before, over that of the plain step.

`--settings` hold for all steps, the plain one too, which a line tells of in seconds and MiB.

Bars, for models other than micro on the CPU: ideal at most 1.05; naive at least 1.3 at K = 3; memory at most 2.1.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or the profiler tells of each start and stop

import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F
from torch.profiler import profile

from nsaug.cli.app import instantiate
from nsaug.methods import Clean, Method, Nullspace
from nsaug.models.noisy_vit import NoisyViT, params_frozen
from nsaug.nullspace import NoiseSynthesis
from nsaug.utils.rng import make_generator

BATCH = {"micro": 64, "vit_cifar": 32, "vit_s": 8}
METHODS = [
    *(f"nullspace nullspace.steps={k}" for k in (1, 3, 10)),
    *(f"nullspace nullspace=batch nullspace.steps={k}" for k in (1, 3, 10)),
    "nullspace nullspace=epoch",
    *(f"naive {k}" for k in (1, 3, 10)),
    *(f"pgd method.attack.num_steps={k}" for k in (1, 3, 10)),
    "clean_two_views",
    "random_noise",
    "random_noise method.match=influence nullspace.eps=0.03",
    "random_noise method.match=start",
    "fgsm_rs",
    "trades",
]
IDEAL, NAIVE, MEMORY = 1.05, 1.3, 2.1
Step = Callable[[], Any]


class Naive(Method):
    """Nullspace finetuning without any economy."""

    def __init__(self, steps: int, shape: torch.Size) -> None:
        super().__init__()
        self.steps, self.shape = steps, shape
        self.cost = (6 + 6 * steps) / 3

    def loss(self, vit: NoisyViT, images: torch.Tensor, targets: torch.Tensor, make_generator: torch.Generator) -> Any:
        noise = torch.randn(len(images), *self.shape, generator=make_generator, device=images.device).requires_grad_()
        optimizer = torch.optim.AdamW([noise], lr=1e-3)
        for _ in range(self.steps):
            distance = (vit(images, noise) - vit(images)).norm(dim=-1).mean()
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
        vit.zero_grad()
        return F.cross_entropy(vit(images), targets) + F.cross_entropy(vit(images, noise.detach()), targets), {}


class Bench:
    """One model, its batch and its optimiser."""

    def __init__(self, name: str, device: str, settings: list[str]) -> None:
        self.name, self.device, self.settings = name, device, settings
        torch.manual_seed(0)
        self.vit = instantiate(self.told("clean").model, num_classes=10).to(device).train()
        self.images = torch.rand(BATCH[name], *self.vit.data_config["input_size"], device=device)
        self.labels = torch.randint(10, (len(self.images),), device=device)
        self.optimizer = torch.optim.AdamW(self.vit.parameters(), lr=1e-5)
        self.noise = torch.randn(len(self.images), *self.vit.noise_shape(), device=device).requires_grad_()
        self.target = torch.zeros(len(self.images), 10, device=device)

    def told(self, method: str) -> Any:
        with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
            fixed = [f"model={self.name}", "model.pretrained=false", "nullspace.eps=1e-9"]
            return compose("train", [*fixed, *self.settings, *f"method={method}".split()])

    def method(self, settings: str) -> Method:
        if settings.startswith("naive"):
            return Naive(int(settings.split()[1]), self.vit.noise_shape())
        method = instantiate(self.told(settings).method).to(self.device)
        method.prepare(self.vit, self.images, lambda value: value)
        batches = lambda number, count: [self.images]  # noqa: E731
        method.start_epoch(self.vit, batches, 1, make_generator(self.device, 0), lambda value: value)
        return method

    def step(self, method: Method) -> Step:
        seen = self.images.unsqueeze(1).repeat(1, method.views, 1, 1, 1) if method.views > 1 else self.images

        def step() -> None:
            with self.vit.compiled():
                loss, _ = method.loss(self.vit, seen, self.labels, make_generator(self.device, 0))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return step

    def refinement(self) -> None:
        """A forward and a gradient to the noise."""
        with self.vit.compiled(), params_frozen(self.vit):
            logits = self.vit(self.images, self.noise)
            torch.autograd.grad((logits - self.target).norm(dim=-1).mean(), self.noise)

    def seconds(self, step: Step) -> float:
        start = time.perf_counter()
        step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def memory(self, step: Step) -> int:
        """The most bytes that a step has allocated at once."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
        with profile(profile_memory=True) as found:
            step()
        events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
        now = most = 0
        for _, change in changes:
            now += change
            most = max(most, now)
        return most


def refinements(method: Method) -> int | None:
    """K, of noise that is refined for each batch alone; 0 where it is learned at an epoch's start."""
    if isinstance(method, Naive):
        return method.steps
    if not isinstance(method, Nullspace):
        return None
    return method.synthesis.steps if isinstance(method.synthesis, NoiseSynthesis) else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH, default=["micro", "vit_cifar"])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="each as on the command line, after method=")
    parser.add_argument("--rounds", type=int, default=9, help="how often each step is timed, after two to warm up")
    parser.add_argument("--settings", nargs="+", default=[], help="of the model, such as model.compile=true")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = f"{'plain':>6} {'quartiles':>13} {'counted':>8} {'ideal':>6} {'naive':>6} {'memory':>7}"
    print(f"{'model':9} {'batch':>5} {columns}   method, {device}")
    missed = []
    for name in options.models:
        bench = Bench(name, device, options.settings)
        methods = {settings: bench.method(settings) for settings in options.methods}
        for row in measured(bench, methods, options.rounds):
            print(row.shown(), flush=True)
            missed += row.missed() if name != "micro" and device == "cpu" else []
    if options.check:
        print("\n".join(missed) or "all bars are met")
    sys.exit(bool(missed and options.check))


class Row:
    """What was measured of one method on one model."""

    def __init__(self, bench: Bench, settings: str, method: Method) -> None:
        self.bench, self.settings, self.method = bench, settings, method
        self.refinements = refinements(method)
        self.plain: list[float] = []
        self.ideal: list[float] = []
        self.naive: list[float] = []
        self.memory = float("nan")

    def shown(self) -> str:
        low, middle, high = statistics.quantiles(self.plain, n=4)
        cells = [f"{statistics.median(each):6.2f}" if each else f"{'-':>6}" for each in (self.ideal, self.naive)]
        batch = len(self.bench.images)
        return (
            f"{self.bench.name:9} {batch:5} {middle:6.2f} {low:6.2f}-{high:6.2f} {self.method.cost:8.2f}"
            f" {cells[0]} {cells[1]} {self.memory:7.2f}   {self.settings}"
        )

    def missed(self) -> list[str]:
        """The bars that it misses, in words."""
        if self.refinements is None or isinstance(self.method, Naive):
            return []
        where, found = f"missed: {self.bench.name}, {self.settings}:", []
        if statistics.median(self.ideal) > IDEAL:
            found.append(f"{where} {statistics.median(self.ideal):.3f} of the ideal, at most {IDEAL}")
        if self.naive and self.refinements == 3 and statistics.median(self.naive) < NAIVE:
            found.append(
                f"{where} {statistics.median(self.naive):.2f} times as fast as the naive loop, at least {NAIVE}"
            )
        if self.memory > MEMORY:
            found.append(f"{where} {self.memory:.2f} of a plain step's memory, at most {MEMORY}")
        return found


def measured(bench: Bench, methods: dict[str, Method], rounds: int) -> list[Row]:
    rows = [Row(bench, settings, method) for settings, method in methods.items()]
    plain = bench.step(Clean())
    steps = [bench.step(row.method) for row in rows]
    for number in range(rounds + 2):
        plains, taken = [], []
        alone = bench.seconds(bench.refinement)
        for step in steps:
            plains.append(bench.seconds(plain))
            taken.append(bench.seconds(step))
        if number < 2:
            continue
        usual = statistics.median(plains)
        naive = {row.refinements: time for row, time in zip(rows, taken, strict=True) if isinstance(row.method, Naive)}
        for row, base, time_taken in zip(rows, plains, taken, strict=True):
            row.plain.append(time_taken / base)
            if row.refinements is not None:
                row.ideal.append(time_taken / (2 * usual + row.refinements * alone))
                if row.refinements in naive:
                    row.naive.append(naive[row.refinements] / time_taken)
    usual_memory = bench.memory(plain)
    print(f"{bench.name}: a plain step takes {usual:.3f} s and {usual_memory / 2**20:.0f} MiB", *bench.settings)
    for row, step in zip(rows, steps, strict=True):
        row.memory = bench.memory(step) / usual_memory
    return rows


if __name__ == "__main__":
    main()
