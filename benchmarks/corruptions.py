"""Speed of corruptions on the fly at 224 px: time per image, relative to the library imagecorruptions.

python benchmarks/corruptions.py            all 19 corruptions
python benchmarks/corruptions.py --check    exit code 1 if the 15 test corruptions are less than 3 times as fast
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import imagecorruptions
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.corruptions.severities import IMAGENET
from nsaug.utils.rng import make_generator

SIDE, BATCH_SIZE = 224, 16
SEVERITIES = (1, 3, 5)
MIN_SPEEDUP = 3.0


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, over severities 1, 3 and 5 each")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    photographs = [Image.fromarray(image).resize((SIDE, SIDE)) for image in load_sample_images().images]
    pixels = np.stack([np.array(photographs[index % 2]) for index in range(BATCH_SIZE)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def run_library(name: str, severity: int) -> None:
        imagecorruptions.corrupt(pixels[0], severity, name)

    def run_nsaug(name: Any, severity: int) -> None:
        corruption = Corruption(name=name, severity=severity)
        params = [corruption.make_params((3, SIDE, SIDE), make_generator("cpu", key)) for key in range(BATCH_SIZE)]
        corruption(images, params)

    # Seconds per image, summed over severities, by corruption and round.
    theirs, ours = np.zeros((2, len(IMAGENET), args.rounds + 1))
    for turn in range(args.rounds + 1):
        for index, name in enumerate(IMAGENET):
            for severity in SEVERITIES:
                theirs[index, turn] += seconds(partial(run_library, name, severity))
                ours[index, turn] += seconds(partial(run_nsaug, name, severity)) / BATCH_SIZE
    theirs, ours = theirs[:, 1:], ours[:, 1:]  # the first round compiles and fills caches
    print(f"per image of {SIDE} px  theirs, ms  ours, ms  ratio")
    for name, library_time, own_time in zip(IMAGENET, theirs.mean(1), ours.mean(1), strict=True):
        milliseconds = 1000 * np.array([library_time, own_time]) / len(SEVERITIES)
        print(f"{name:20s} {milliseconds[0]:11.1f} {milliseconds[1]:9.1f} {library_time / own_time:6.1f}")
    count = len(TEST_CORRUPTIONS)
    ratios = theirs[:count].sum(0) / ours[:count].sum(0)
    print(f"the {count} test corruptions together: {np.median(ratios):.1f} times as fast", end=" ")
    print(f"({ratios.min():.1f}-{ratios.max():.1f} over {args.rounds} rounds)")
    return int(args.check and np.median(ratios) < MIN_SPEEDUP)


if __name__ == "__main__":
    sys.exit(main())
