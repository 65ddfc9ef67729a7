"""Time and memory of a training step of every method, relative to a plain step and to the ideal.

    python benchmarks/step_cost.py                                       model=micro and model=vit_cifar, all methods
    python benchmarks/step_cost.py --models vit_s --methods "nullspace nullspace.num_steps=1" "naive 1" --rounds 20
    python benchmarks/step_cost.py --models vit_cifar vit_s --check      exit 1 if a limit is exceeded

Models and methods are those of conf/; a method may be followed by settings. `naive K` is nullspace finetuning without
economies: all of its K updates recompute the clean logits and backpropagate to the weights too.

Every round takes one step of every method, each after a plain step. Columns, as medians over the rounds:

- plain: time relative to a plain step, with quartiles;
- cost: the same as the method declares it, counting a forward, a backward to activations and a backward to weights as
  1/3 each; (6 + 2 K) / 3 for nullspace noise. With nullspace=universal it includes learning the noise at the start of
  an epoch, which is not timed here;
- ideal: time relative to two plain steps and K times a forward and a gradient to the noise, timed separately;
- naive: time of `naive K` relative to this method;
- memory: peak of the memory that a step allocates, relative to a plain step.

Limits, for method=nullspace on the CPU: ideal at most 1.03 for vit_ti and vit_s and 1.05 for vit_cifar, memory at most
2.05, naive at least 1.3 with K = 3. micro, whose step costs as much in Python as in arithmetic, has none.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler logs every start and stop

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.autograd.profiler import profile
from torch.nn import functional as F

from nsaug.cli.app import instantiate
from nsaug.cli.compose import compose
from nsaug.methods import Clean, Method
from nsaug.models.noisy_vit import NoisyViT, params_frozen
from nsaug.nullspace.per_image import newton_step
from nsaug.utils.rng import make_generator

BATCH_SIZES = {"micro": 64, "vit_cifar": 32, "vit_ti": 16, "vit_s": 8}
METHODS = [
    *(f"nullspace nullspace.num_steps={k}" for k in (1, 3, 10)),
    *(f"nullspace nullspace=per_batch nullspace.num_steps={k}" for k in (1, 3, 10)),
    "nullspace nullspace=universal",
    *(f"naive {k}" for k in (1, 3, 10)),
    *(f"random_noise method.noise.match={match}" for match in ("init", "norm", "influence")),
    *(f"pgd method.attack.num_steps={k}" for k in (1, 3, 10)),
    "fgsm_rs",
    "trades",
    "clean_two_views",
]
MAX_IDEAL = {"vit_cifar": 1.05, "vit_ti": 1.03, "vit_s": 1.03}
MAX_MEMORY, MIN_NAIVE = 2.05, 1.3
NUM_WARMUP = 2
Step = Callable[[], None]


class Naive(Method):
    """Nullspace finetuning without economies, with K updates."""

    name = "naive"

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.cost = (6 + 6 * num_steps) / 3

    def loss(self, model: NoisyViT, images: Tensor, targets: Tensor, generator: torch.Generator) -> Any:
        shape = (len(images), *model.noise_shape())
        noise = torch.randn(shape, generator=generator, device=images.device)
        for _ in range(self.num_steps):
            noise.requires_grad_()
            phi = (model(images, noise).softmax(-1) - model(images).softmax(-1)).norm(dim=-1)
            phi.sum().backward()
            assert noise.grad is not None
            noise = newton_step(noise.detach(), noise.grad, phi.detach(), target=0.1)
        model.zero_grad()
        return F.cross_entropy(model(images), targets) + F.cross_entropy(model(images, noise), targets), {}


class Bench:
    """One model with a batch of random images and an optimizer.

    Args:
        model_name: a choice of conf/model, with an entry in BATCH_SIZES.
        device: cpu or cuda.
        settings: of the model, for all methods.
        num_classes: number of classes.
    """

    def __init__(self, model_name: str, device: str, settings: list[str], num_classes: int = 10) -> None:
        self.model_name, self.device, self.settings = model_name, device, settings
        torch.manual_seed(0)
        self.model = instantiate(self.compose("clean").model, num_classes=num_classes).to(device).train()
        self.images = torch.rand(BATCH_SIZES[model_name], *self.model.data_config["input_size"], device=device)
        self.labels = torch.randint(num_classes, (len(self.images),), device=device)
        self.noise = torch.randn(len(self.images), *self.model.noise_shape(), device=device).requires_grad_()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def compose(self, method: str) -> DictConfig:
        overrides = [f"model={self.model_name}", "model.pretrained=false", *self.settings, *f"method={method}".split()]
        return compose("train", overrides)

    def method(self, name: str) -> Method:
        """A method that is ready to train: `naive K`, or a choice of conf/method and settings."""
        if name.startswith("naive "):
            return Naive(int(name.split()[1]))
        method: Method = instantiate(self.compose(name).method).to(self.device)
        method.setup(self.model)
        generator = make_generator(self.device, 0)
        method.start_epoch(self.model, lambda number, count: [self.images], 1, generator, lambda tensor: tensor)
        return method

    def step(self, method: Method) -> Step:
        """A training step of a method, as a function."""
        views = self.images
        if method.num_views > 1:
            views = self.images.unsqueeze(1).repeat(1, method.num_views, 1, 1, 1)

        def step() -> None:
            with self.model.compiled():
                loss, _ = method.loss(self.model, views, self.labels, make_generator(self.device, 0))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return step

    def noise_gradient(self) -> None:
        """A forward and a gradient to the noise: the model's part of one update."""
        with self.model.compiled(), params_frozen(self.model):
            logits = self.model(self.images, self.noise)
            torch.autograd.grad(logits.norm(dim=-1).sum(), self.noise)

    def seconds(self, step: Step) -> float:
        start = time.perf_counter()
        step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_memory(self, step: Step) -> int:
        """Peak of the bytes that a step allocates, beyond what is allocated before it."""
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
        with profile(profile_memory=True) as profiler:
            step()
        events = profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        return max(0, *np.cumsum([change for _, change in changes]).tolist())


@dataclass
class Row:
    """Measurements of one method; ratios without a unit, None if they do not apply."""

    method: str
    num_steps: int | None
    cost: float
    plain: tuple[float, float, float]
    ideal: float | None
    naive: float | None
    memory: float

    def __str__(self) -> str:
        low, median, high = self.plain
        ideal, naive = (f"{'-' if ratio is None else format(ratio, '.2f'):>6}" for ratio in (self.ideal, self.naive))
        times = f"{median:6.2f} {low:6.2f}-{high:6.2f} {self.cost:6.2f} {ideal} {naive}"
        return f"{times} {self.memory:7.2f}   {self.method}"

    def limits(self, max_ideal: float) -> Iterator[tuple[bool, str]]:
        """Whether each limit that applies to the method is met, and a description."""
        if self.ideal is None or self.method.startswith("naive"):
            return
        yield self.ideal <= max_ideal, f"{self.ideal:.3f} of the ideal time, limit {max_ideal}"
        yield self.memory <= MAX_MEMORY, f"{self.memory:.2f} times the memory of a plain step, limit {MAX_MEMORY}"
        if self.naive is not None and self.num_steps == 3:
            yield self.naive >= MIN_NAIVE, f"{self.naive:.2f} times as fast as naive, limit {MIN_NAIVE}"


def measure(bench: Bench, names: list[str], num_rounds: int) -> list[Row]:
    """Time all methods in alternation with the plain step, then measure their memory."""
    methods = [bench.method(name) for name in names]
    num_steps = [count_updates(method) for method in methods]
    plain_step, steps = bench.step(Clean()), [bench.step(method) for method in methods]
    plain, taken = np.zeros((2, NUM_WARMUP + num_rounds, len(names)))
    gradient = np.zeros(NUM_WARMUP + num_rounds)
    for turn in range(NUM_WARMUP + num_rounds):
        gradient[turn] = bench.seconds(bench.noise_gradient)
        for index, step in enumerate(steps):
            plain[turn, index] = bench.seconds(plain_step)
            taken[turn, index] = bench.seconds(step)
    plain, taken, gradient = plain[NUM_WARMUP:], taken[NUM_WARMUP:], gradient[NUM_WARMUP:]

    typical = np.median(plain, axis=1)
    naive = {method.num_steps: taken[:, i] for i, method in enumerate(methods) if isinstance(method, Naive)}
    plain_memory = bench.peak_memory(plain_step)
    print(
        f"\n{bench.model_name} on {bench.device}, batch size {len(bench.images)}", *bench.settings, sep=", ", end=": "
    )
    print(f"a plain step takes {np.median(typical):.3f} s and {plain_memory / 2**20:.0f} MiB")
    rows = []
    for i, (name, method, k) in enumerate(zip(names, methods, num_steps, strict=True)):
        low, median, high = np.quantile(taken[:, i] / plain[:, i], (0.25, 0.5, 0.75)).tolist()
        ideal = None if k is None else float(np.median(taken[:, i] / (2 * typical + k * gradient)))
        speedup = float(np.median(naive[k] / taken[:, i])) if k in naive else None
        memory = bench.peak_memory(steps[i]) / plain_memory
        rows.append(Row(name, k, method.cost, (low, median, high), ideal, speedup, memory))
    return rows


def count_updates(method: Method) -> int | None:
    """K, the updates of nullspace noise within a step (0 for universal noise); None for other methods."""
    if isinstance(method, Naive):
        return method.num_steps
    return getattr(method.noise, "num_steps", 0) if method.name == "nullspace" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH_SIZES, default=["micro", "vit_cifar"])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as on the command line, after method=")
    parser.add_argument("--settings", nargs="+", default=[], help="of the model, such as model.compile=true")
    parser.add_argument("--rounds", type=int, default=9, help=f"after {NUM_WARMUP} to warm up")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is exceeded")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checks = []
    for model_name in args.models:
        rows = measure(Bench(model_name, device, args.settings), args.methods, args.rounds)
        print(f"{'plain':>6} {'quartiles':>13} {'cost':>6} {'ideal':>6} {'naive':>6} {'memory':>7}   method")
        print(*rows, sep="\n", flush=True)
        if model_name in MAX_IDEAL and device == "cpu":
            limits = [(row, limit) for row in rows for limit in row.limits(MAX_IDEAL[model_name])]
            checks += [(met, f"{model_name}, {row.method}: {text}") for row, (met, text) in limits]
    if args.check:
        if not checks:
            sys.exit(f"no limit applies to these models and methods on {device}")
        exceeded = [text for met, text in checks if not met]
        print("", *exceeded, f"{len(checks) - len(exceeded)} of {len(checks)} limits met", sep="\n")
        sys.exit(bool(exceeded))


if __name__ == "__main__":
    main()
