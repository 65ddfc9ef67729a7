"""What a corruption costs: imagecorruptions' time over ours, image by image, at 224 px.

python benchmarks/corruptions.py            the 15 of ImageNet-C's test set and the 4 for validation
python benchmarks/corruptions.py --check    exit code 1 where the 15 together are less than 3 times as fast
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import imagecorruptions
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.corruptions.severities import IMAGENET
from nsaug.utils.rng import make_generator

SIDE, BATCH = 224, 16
BAR = 3.0


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="over severities 1, 3 and 5 each")
    parser.add_argument("--check", action="store_true")
    told = parser.parse_args()
    photographs = [Image.fromarray(each).resize((SIDE, SIDE)) for each in load_sample_images().images]
    pixels = np.stack([np.array(photographs[index % 2]) for index in range(BATCH)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def library(name: str, severity: int) -> None:
        imagecorruptions.corrupt(pixels[0], severity, name)

    def own(name: str, severity: int) -> None:  # the draws are part of it
        corruption = Corruption(name=name, severity=severity)
        corruption(images, [corruption.draw((3, SIDE, SIDE), make_generator("cpu", key)) for key in range(BATCH)])

    # Seconds an image takes over three severities, by corruption and round; the first round compiles and caches.
    theirs, ours = np.zeros((2, len(IMAGENET), told.rounds + 1))
    for turn in range(told.rounds + 1):
        for place, name in enumerate(IMAGENET):
            for severity in (1, 3, 5):
                theirs[place, turn] += seconds(partial(library, name, severity))
                ours[place, turn] += seconds(partial(own, name, severity)) / BATCH
    theirs, ours = theirs[:, 1:], ours[:, 1:]
    print(f"an image of {SIDE} px     theirs, ms  ours, ms  ratio")
    for name, a, b in zip(IMAGENET, theirs.mean(1), ours.mean(1), strict=True):
        print(f"{name:20s} {1000 * a / 3:12.1f} {1000 * b / 3:9.1f} {a / b:6.1f}")
    count = len(TEST_CORRUPTIONS)
    ratios = theirs[:count].sum(0) / ours[:count].sum(0)
    print(f"the {count} of the test set together: {np.median(ratios):.1f} times as fast", end=" ")
    print(f"({ratios.min():.1f}-{ratios.max():.1f} over {told.rounds} rounds)")
    return int(told.check and np.median(ratios) < BAR)


if __name__ == "__main__":
    sys.exit(main())
