"""Share of the ideal time that many evaluation processes reach, simulated with attack times of a long tail.

    python benchmarks/scheduling.py             64 processes, units of suite=imagenet_small, five draws
    python benchmarks/scheduling.py --check     exit 1 if the share is below 0.95

The time of an image is the estimated cost of its benchmark times a draw from a log-normal distribution (mean 1, at most
5): with AutoAttack some images fall at the first step, some after thousands. The processes do not know it. They take
units from a counter, the most expensive estimate first, cheap ones one in advance, as `nsaug.evaluation.Workers` and
`load_units` do. Ideal: the sum of all times divided by the number of processes.
"""

import argparse
import heapq
import sys

import numpy as np

from nsaug.evaluation.units import EXPENSIVE, block_size

MIN_SHARE = 0.95
MAX_TIME = 5
"""Longest time of an image, in multiples of the mean: AutoAttack ends after some 10,000 forward passes."""


def simulate(times: np.ndarray, expensive: np.ndarray, num_workers: int) -> float:
    """Time until all units, taken in their order, are done."""
    remaining = iter(range(len(times)))
    events: list[
        tuple[float, int, int | None]
    ] = []  # when a process is done, which one, the unit that it took in advance

    def start(now: float, worker: int, unit: int | None) -> None:
        unit = next(remaining, None) if unit is None else unit
        if unit is not None:
            held = None if expensive[unit] else next(remaining, None)
            heapq.heappush(events, (now + times[unit], worker, held))

    for worker in range(num_workers):
        start(0.0, worker, None)
    now = 0.0
    while events:
        now, worker, held = heapq.heappop(events)
        start(now, worker, held)
    return now


def make_units(num_images: int, batch_size: int, sigma: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times of the units of a suite like imagenet_small, the most expensive estimate first, and which are expensive."""
    rng = np.random.default_rng(seed)
    forwards = [3000] + [181] * 2 + [151] * 2 + [61] * 4 + [31] * 6 + [4] * 8 + [1] * 300  # autoattack, pgd, ..., clean
    times, expensive = [], []
    for cost in forwards:
        images = cost * rng.lognormal(-(sigma**2) / 2, sigma, num_images).clip(max=MAX_TIME)
        size = block_size(batch_size, cost >= EXPENSIVE)
        blocks = [images[start : start + size].sum() for start in range(0, num_images, size)]
        times += blocks
        expensive += [cost >= EXPENSIVE] * len(blocks)
    return np.array(times), np.array(expensive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--sigma", type=float, default=1.5, help="standard deviation of the logarithm of the times")
    parser.add_argument("--check", action="store_true", help=f"exit 1 if a share is below {MIN_SHARE}")
    options = parser.parse_args()
    print(f"{options.workers} processes, {options.images:,} images; share of the ideal time: mean (worst of 5 draws)")
    worst = 1.0
    for batch_size in (32, 64, 128, 256):
        shares = []
        for seed in range(5):
            times, expensive = make_units(options.images, batch_size, options.sigma, seed)
            shares.append(times.sum() / options.workers / simulate(times, expensive, options.workers))
        print(f"batch_size={batch_size:<4} {len(times):7,} units  {np.mean(shares):.3f} ({min(shares):.3f})")
        worst = min(worst, min(shares))
    if options.check and worst < MIN_SHARE:
        sys.exit(f"a share is below {MIN_SHARE}")


if __name__ == "__main__":
    main()
