"""Time of evaluation relative to a bare loop and to other libraries.

    python benchmarks/evaluation.py             vit_cifar on 256 images, on the CPU or the GPU if there is one
    python benchmarks/evaluation.py --check     exit 1 if a ratio is above 1.05

- clean: a clean benchmark, cache included, over a bare loop with the same images (forward, argmax, count).
- PGD-20: ours over foolbox's and torchattack's, with the same model, images, radius and step size.

Both sides of a ratio alternate within one process. The median over pairs is printed with its quartiles.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import torch
import torchattack
from torch.utils.data import DataLoader

from nsaug.attacks import PGD
from nsaug.data import ImageSet
from nsaug.evaluation import Clean, Entry, EvalModel, Plan, ResultCache, Runner, Unit
from nsaug.evaluation.units import Job
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT

MAX_RATIO = 1.05
EPS, STEPS = 2 / 255, 20


class Loader:
    """Random images by position."""

    def __init__(self, count: int, size: tuple[int, ...]) -> None:
        self.images = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))

    def __call__(self, index: int) -> torch.Tensor:
        return self.images[index]

    def fingerprint(self, index: int) -> str:
        return str(index)


@torch.no_grad()
def bare_loop(vit: NoisyViT, loader: DataLoader[Any], device: str) -> int:
    correct = 0
    for images, labels, _ in loader:
        correct += int((vit(images.to(device)).argmax(1) == labels.to(device)).sum())
    return correct


def evaluate_clean(vit: NoisyViT, data: ImageSet) -> None:
    """Blocks of clean images, loaded, evaluated and written to an empty cache; listed and hashed before."""
    with tempfile.TemporaryDirectory() as folder:
        units = [
            Unit(0, 0, tuple(range(start, min(start + 64, len(data)))), f"{start:064}", 1)
            for start in range(0, len(data), 64)
        ]
        job = Job(0, Entry("clean", Clean()), units=tuple(unit.key for unit in units))
        plan = Plan([EvalModel(None, None, {}, "vit")], [None], [""], [job], [data], units, 0)
        runner = Runner(plan, lambda model: vit, ResultCache(Path(folder)), vit.mean.device, 64, num_workers=0)
        runner.compute(units, lambda unit: None)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_ratio(name: str, ours: Callable[[], Any], reference: Callable[[], Any], num_pairs: int) -> float:
    """Print and return the median ratio of times; the sides take turns to go first."""
    ratios = []
    for pair in range(num_pairs + 1):
        if pair % 2:
            reference_time, our_time = seconds(reference), seconds(ours)
        else:
            our_time, reference_time = seconds(ours), seconds(reference)
        ratios.append(our_time / reference_time)
    low, median, high = statistics.quantiles(ratios[1:], n=4)  # the first pair is warm-up
    print(f"{name:28} {median:6.3f}   {low:.3f}-{high:.3f}", flush=True)
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--check", action="store_true", help=f"exit 1 if a ratio is above {MAX_RATIO}")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    args = {"embed_dim": 192, "depth": 6, "num_heads": 3, "class_token": False, "global_pool": "avg"}
    vit = build_vit("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, args=args).to(device).eval()
    vit.requires_grad_(False)
    load = Loader(options.images, (3, 32, 32))
    labels = torch.randint(10, (options.images,), generator=torch.Generator().manual_seed(1))
    data = ImageSet(
        [str(index) for index in range(options.images)], labels.tolist(), load, transform=lambda image: image
    )
    loader: DataLoader[Any] = DataLoader(data, batch_size=64)
    images, labels = load.images[:64].to(device), labels[:64].to(device)
    pgd = PGD(eps=EPS, num_steps=STEPS, step_size=EPS / 4, random_start=True)
    generator = torch.Generator(device).manual_seed(0)
    foolbox_model = foolbox.PyTorchModel(vit, bounds=(0, 1), device=device)
    foolbox_pgd = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=STEPS, random_start=True)
    torchattack_pgd = torchattack.PGD(
        vit, None, torch.device(device), eps=EPS, steps=STEPS, alpha=EPS / 4, random_start=True
    )

    print(f"{'ratio, on ' + device:28} {'median':>6}   quartiles")

    def ours_pgd() -> torch.Tensor:
        return pgd(vit, images, labels, generator)

    n = options.pairs
    ratios = [
        median_ratio(
            "clean / bare loop",
            lambda: evaluate_clean(vit, data),
            lambda: bare_loop(vit, loader, device),
            n,
        ),
        median_ratio("PGD-20 / foolbox", ours_pgd, lambda: foolbox_pgd(foolbox_model, images, labels, epsilons=EPS), n),
        median_ratio("PGD-20 / torchattack", ours_pgd, lambda: torchattack_pgd(images, labels), n),
    ]
    if options.check and max(ratios) > MAX_RATIO:
        sys.exit(f"a ratio is above {MAX_RATIO}")


if __name__ == "__main__":
    main()
