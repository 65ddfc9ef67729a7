"""Time the loading of training images, relative to a plain torchvision loader.

    python benchmarks/loading.py /datasets/imagenet              a folder with train/WNID/*.JPEG
    python benchmarks/loading.py imagenet_sample.tar --check     a tar of class folders; exits 1 above the limit

`nsaug` is data=imagenet as in train.py: RandomResizedCrop and flip, order and augmentation as functions of seed, epoch
and image, unreadable images replaced. `plain` is torchvision's ImageFolder with the same crop and flip in a shuffled
DataLoader. Both load the same images with the same number of processes, in alternating rounds. A tar is unpacked for
both, and nsaug also loads it as a tar. `time` is nsaug's time for an image divided by plain's in the same round; the
limit is a median of 1.05.
"""

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor, v2

from nsaug.data import ImageNet

LIMIT = 1.05
SIZE = 224
DATA_CONFIG = {
    "input_size": (3, SIZE, SIZE),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
}


def nsaug_loader(root: Path, batch_size: int, num_workers: int) -> DataLoader[Any]:
    data = ImageNet(root=str(root), batch_size=batch_size, num_workers=num_workers, val_fraction=0)
    data.setup("fit")
    data.configure(DATA_CONFIG)
    return data.train_dataloader()


def plain_loader(root: Path, batch_size: int, num_workers: int) -> DataLoader[Any]:
    crop = v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC)
    images = ImageFolder(str(root / "train"), v2.Compose([crop, ToTensor(), v2.RandomHorizontalFlip()]))
    return DataLoader(
        images,
        batch_size,
        sampler=RandomSampler(images),
        num_workers=num_workers,
        drop_last=len(images) >= batch_size,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def images_per_second(loader: Iterable[Any]) -> float:
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in loader)
    return count / (time.perf_counter() - start)


def unpack(archive: Path, root: Path) -> tuple[Path, Path]:
    """Unpack the class folders of a tar to root/folders/train, and repack them as root/tars/train.tar."""
    (root / "tars").mkdir()
    with tarfile.open(archive) as tar, tarfile.open(root / "tars" / "train.tar", "w") as flat:
        for member in tar:
            if member.isfile():
                path = root / "folders" / "train" / Path(*Path(member.name).parts[-2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                flat.add(path, "/".join(path.parts[-2:]))
    return root / "folders", root / "tars"


def measure(loaders: dict[str, DataLoader[Any]], num_rounds: int) -> dict[str, list[float]]:
    """Images per second of every loader in every round; the loaders take turns in going first."""
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for number in range(num_rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            speed = images_per_second(loaders[name])
            if number:  # the first round starts the processes and fills the disk cache
                speeds[name].append(speed)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder that contains train/, or a tar of class folders")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="exit 1 if nsaug is slower than the limit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, tars = unpack(args.images, Path(folder)) if args.images.is_file() else (args.images, None)
        loaders = {
            "plain": plain_loader(root, args.batch_size, args.num_workers),
            "nsaug": nsaug_loader(root, args.batch_size, args.num_workers),
        }
        if tars:
            loaders["nsaug, tar"] = nsaug_loader(tars, args.batch_size, args.num_workers)
        speeds = measure(loaders, args.rounds)
    print(f"{'images/s':>9} {'time':>6} {'quartiles':>13}   {args.num_workers} processes")
    medians = {}
    for name, own_speeds in speeds.items():
        ratios = [plain / own for plain, own in zip(speeds["plain"], own_speeds, strict=True)]
        low, medians[name], high = statistics.quantiles(ratios, n=4)
        print(f"{statistics.median(own_speeds):9.1f} {medians[name]:6.3f} {low:6.3f}-{high:6.3f}   {name}")
    slow = medians["nsaug"] > LIMIT
    if args.check:
        print(f"{'slower than' if slow else 'within'} the limit: {medians['nsaug']:.3f} of plain's time, limit {LIMIT}")
    sys.exit(args.check and slow)


if __name__ == "__main__":
    main()
