"""Order and augmentation of training images as functions of seed and epoch; unreadable images in batches."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate, get_worker_info

from nsaug.data.dataset import ImageSet, UnreadableImage
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream, make_generator, seed_all, seed_scope


@dataclass(frozen=True)
class SeededDataset(Dataset[Any]):
    """Training images whose augmentation depends on the seed and the key alone.

    A key is a tuple of integers that ends with the position of an image, such as (epoch, position).

    Attributes:
        unreadable: whether an image could not be read and was replaced by the next one, by position; in shared
            memory, so that all worker processes fill the same tensor.
    """

    images: ImageSet
    seed: int
    unreadable: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        for offset in range(len(self)):
            position = (key[-1] + offset) % len(self)
            try:
                if get_worker_info() is not None:  # a worker has generators of its own: no need to restore them
                    seed_all(self.seed, Stream.AUGMENTATION, *key)
                    return self.images[position]
                with seed_scope(self.seed, Stream.AUGMENTATION, *key):
                    return self.images[position]
            except UnreadableImage:
                self.unreadable[position] = True
        raise UserError("none of the training images can be read")


class ResumableSampler(DistributedSampler[Any]):
    """Keys (epoch, position) in an order that depends on seed and epoch; resumes in mid-epoch.

    All ranks get equally many: surplus images are dropped with `drop_last`, else the first ones are repeated. It is
    a DistributedSampler so that Lightning does not replace it.

    Args:
        progress: returns the epoch and the number of its batches that are done; called when iteration starts.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        drop_last: bool,
        progress: Callable[[], tuple[int, int]],
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(range(count), num_replicas, rank, drop_last=drop_last)  # type: ignore[arg-type]
        self.count = count
        self.order_seed = seed
        self.batch_size = batch_size
        self.progress = progress

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, num_done = self.progress()
        generator = make_generator("cpu", self.order_seed, Stream.DATA_ORDER, epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        order = (order * 2)[: self.total_size]  # twice is enough to pad: there are at least as many images as ranks
        positions = order[self.rank : self.total_size : self.num_replicas]
        num_batches = len(positions) / self.batch_size
        num_batches = int(num_batches) if self.drop_last else math.ceil(num_batches)
        return iter([(epoch, position) for position in positions[num_done % num_batches * self.batch_size :]])


class ResumableDataLoader(DataLoader[Any]):
    """Resumes mid-epoch by itself; the empty state_dict marks it as resumable for Lightning."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts on the first batch. Lightning creates the iterator before it restores the progress.
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class SkipUnreadable(Dataset[Any]):
    """An image set that returns None in place of an unreadable image."""

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images[index]
        except UnreadableImage:
            return None


def collate_readable(batch: list[Any]) -> Any:
    """Collate without the unreadable images; None if no image is left."""
    readable = [sample for sample in batch if sample is not None]
    return default_collate(readable) if readable else None


def default_num_workers() -> int:
    """One process per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def make_loader(
    images: Dataset[Any],
    batch_size: int,
    num_workers: int,
    loader_class: type[DataLoader[Any]] = DataLoader,
    **kwargs: Any,
) -> DataLoader[Any]:
    """Load batches of images (B, 3, H, W) in [0, 1], labels (B,), and ids; `kwargs` go to the DataLoader."""
    return loader_class(
        images,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        **kwargs,
    )
