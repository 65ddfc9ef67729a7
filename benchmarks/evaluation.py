"""What judging costs beside what it has to cost, as ratios.

    python benchmarks/evaluation.py                     on the CPU: model=vit_cifar, 256 images
    python benchmarks/evaluation.py --check             exits 1 where a bar is missed

- clean: a benchmark's clean path over a bare loop over the same loader (forward, argmax, count); bar 1.05.
- PGD-20: ours over foolbox's and over torchattack's, same model, images, radius and step size; bar 1.05.

Both sides of a ratio alternate within one process; each is the median of the pairs', with its quartiles.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import foolbox
import torch
import torchattack
from torch.utils.data import DataLoader

from nsaug.attacks import PGD
from nsaug.evaluation import Benchmark
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT

BAR = 1.05
EPS, STEPS = 2 / 255, 20


class Images(torch.utils.data.Dataset[Any]):
    """Random images with ids."""

    def __init__(self, count: int, size: tuple[int, ...]) -> None:
        rng = torch.Generator().manual_seed(0)
        self.images, self.labels = torch.rand(count, *size, generator=rng), torch.randint(10, (count,), generator=rng)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        return self.images[index], int(self.labels[index]), str(index)


@torch.no_grad()
def bare(vit: NoisyViT, loader: DataLoader[Any], device: str) -> int:
    correct = 0
    for images, labels, _ in loader:
        correct += int((vit(images.to(device)).argmax(1) == labels.to(device)).sum())
    return correct


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> float:
    """Prints and returns the median ratio; which side goes first alternates."""
    ratios = []
    for turn in range(pairs + 1):
        if turn % 2:
            base, own = seconds(theirs), seconds(ours)
        else:
            own, base = seconds(ours), seconds(theirs)
        ratios.append(own / base)
    low, middle, high = statistics.quantiles(ratios[1:], n=4)  # the first warms up
    print(f"{name:28} {middle:6.3f}   {low:.3f}-{high:.3f}", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--check", action="store_true", help=f"exit 1 where a ratio is above {BAR}")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    args = {"embed_dim": 192, "depth": 6, "num_heads": 3, "class_token": False, "global_pool": "avg"}
    vit = build_vit("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, args=args).to(device).eval()
    vit.requires_grad_(False)
    data = Images(options.images, (3, 32, 32))
    loader: DataLoader[Any] = DataLoader(data, batch_size=64)
    images, labels = data.images[:64].to(device), data.labels[:64].to(device)
    ours = PGD(eps=EPS, num_steps=STEPS, step_size=EPS / 4, random_start=True)
    generator = torch.Generator(device).manual_seed(0)
    wrapped = foolbox.PyTorchModel(vit, bounds=(0, 1), device=device)
    fool = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=STEPS, random_start=True)
    attack = torchattack.PGD(vit, None, device, eps=EPS, steps=STEPS, alpha=EPS / 4, random_start=True)

    print(f"{'ratio, on ' + device:28} {'median':>6}   quartiles")
    found = [
        ratio("clean / bare loop", lambda: Benchmark().run(vit, loader, 0, lambda _: None),
              lambda: bare(vit, loader, device), options.pairs),
        ratio("PGD-20 / foolbox", lambda: ours(vit, images, labels, generator),
              lambda: fool(wrapped, images, labels, epsilons=EPS), options.pairs),
        ratio("PGD-20 / torchattack", lambda: ours(vit, images, labels, generator),
              lambda: attack(images, labels), options.pairs),
    ]  # fmt: skip
    if options.check and max(found) > BAR:
        sys.exit(f"a ratio is above {BAR}")


if __name__ == "__main__":
    main()
