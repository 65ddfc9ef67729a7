"""How fast training images come, beside a bare torchvision loader.

    python benchmarks/loading.py /datasets/imagenet              a folder with train/WNID/*.JPEG
    python benchmarks/loading.py imagenet_sample.tar --check     a tar of class folders; exits 1 where the bar is missed

Ours: data=imagenet as train.py uses it (RandomResizedCrop, flip; order and augmentation as functions of seed, epoch and
image; unreadable images replaced). Bare: torchvision's ImageFolder, the same crop and flip from one generator, a
shuffled DataLoader. Both load the same images with the same number of processes; the rounds take turns. A tar is
unpacked for both, and our loader is timed on the tar itself as well. `bare/ours` is of the images per second in each
round, which is ours over bare in time; the bar is a median of 1.05.
"""

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor, v2

from nsaug.data import ImageNet

BAR = 1.05
SIZE = 224
CONFIG = {"input_size": (3, SIZE, SIZE), "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"}
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def ours(root: Path, batch: int, workers: int) -> DataLoader[Any]:
    data = ImageNet(root=str(root), batch_size=batch, num_workers=workers, val_fraction=0)
    data.setup("fit")
    data.configure_for(CONFIG | STATISTICS)
    return data.train_dataloader()


def bare(root: Path, batch: int, workers: int) -> DataLoader[Any]:
    crop = v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC)
    images = ImageFolder(str(root / "train"), v2.Compose([crop, ToTensor(), v2.RandomHorizontalFlip()]))
    return DataLoader(
        images,
        batch,
        sampler=RandomSampler(images),
        num_workers=workers,
        drop_last=len(images) >= batch,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def images_per_second(loader: Iterable[Any]) -> float:
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in loader)
    return count / (time.perf_counter() - start)


def unpacked(archive: Path, root: Path) -> tuple[Path, Path]:
    """A tar's class folders, wherever they are in it, as root/folders/train; and as root/tars/train.tar."""
    with tarfile.open(archive) as tar, tarfile.open(_made(root / "tars") / "train.tar", "w") as flat:
        for member in tar:
            if member.isfile():
                path = root / "folders" / "train" / Path(*Path(member.name).parts[-2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                flat.add(path, "/".join(path.parts[-2:]))
    return root / "folders", root / "tars"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder that holds train/, or a tar of class folders")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="exit 1 where ours is slower than the bar")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, tars = unpacked(options.images, Path(folder)) if options.images.is_file() else (options.images, None)
        kinds: dict[str, Callable[[Path, int, int], DataLoader[Any]]] = {"bare": bare, "ours": ours}
        loaders = {name: kind(root, options.batch, options.workers) for name, kind in kinds.items()}
        if tars:
            loaders["ours, tar"] = ours(tars, options.batch, options.workers)
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(options.rounds + 1):
            names = list(loaders)
            for name in names[number % len(names) :] + names[: number % len(names)]:  # none always after the same one
                speed = images_per_second(loaders[name])
                if number:  # the first starts the processes and fills the disk's cache
                    speeds[name].append(speed)
    print(f"{'images/s':>9} {'bare/ours':>9} {'quartiles':>13}   {options.workers} processes")
    for name, found in speeds.items():
        ratios = [base / speed for base, speed in zip(speeds["bare"], found, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{statistics.median(found):9.1f} {middle:9.3f} {low:6.3f}-{high:6.3f}   {name}")
    slower = statistics.median(base / speed for base, speed in zip(speeds["bare"], speeds["ours"], strict=True))
    if options.check:
        print(f"{'missed' if slower > BAR else 'met'}: {slower:.3f} times as long as bare, at most {BAR}")
    sys.exit(options.check and slower > BAR)


if __name__ == "__main__":
    main()
