"""Order and augmentation of training images as functions of seed and epoch; images that do not count in validation."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from nsaug.data.dataset import PAD_LABEL, ImageSet, UnreadableImage
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream, make_generator, seed_all, seed_scope
from nsaug.utils.text import preview

log = logging.getLogger(__name__)


class Unreadable:
    """The images of a split that could not be read, counted once each, also by worker processes.

    Args:
        images: of the split.
        title: of the split in messages, such as "training images".
        consequence: what becomes of unreadable images.

    Attributes:
        flags: whether the image at a position could not be read; in shared memory.
    """

    def __init__(self, images: ImageSet, title: str, consequence: str) -> None:
        self.flags = torch.zeros(len(images), dtype=torch.bool).share_memory_()
        self._ids = images.ids
        self._title = title
        self._consequence = consequence
        self._warned = False

    @property
    def count(self) -> int:
        return int(self.flags.sum())

    def __str__(self) -> str:
        names = [self._ids[position] for position in self.flags.nonzero()[:, 0].tolist()]
        return f"{len(names):,} of {len(self._ids):,} {self._title} cannot be read ({preview(names)})"

    def merge(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add the images that other processes could not read.

        Args:
            reduce: returns the maximum over all processes.
        """
        self.flags[reduce(self.flags.byte()).cpu() > 0] = True

    def warn(self) -> None:
        """Log a warning, once, if there are any."""
        if self.count and not self._warned:
            self._warned = True
            log.warning("%s: %s", self, self._consequence)


@dataclass(frozen=True)
class SeededDataset(Dataset[Any]):
    """Training images whose augmentation depends on the seed and the key alone.

    A key is a tuple of integers that ends with the position of an image, such as (epoch, position). An unreadable image
    is replaced by the next readable one.

    Attributes:
        unreadable: `Unreadable.flags`, set here.
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


@dataclass(frozen=True)
class PaddedDataset(Dataset[Any]):
    """Validation images; black images with the label `PAD_LABEL` replace unreadable ones and follow the last one.

    Attributes:
        size: (H, W) of an image.
        unreadable: `Unreadable.flags`, set here.
    """

    images: ImageSet
    size: tuple[int, int]
    unreadable: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Any:
        if position < len(self):
            try:
                return self.images[position]
            except UnreadableImage:
                self.unreadable[position] = True
        return torch.zeros(3, *self.size), PAD_LABEL, ""


class EvenSampler(DistributedSampler[Any]):
    """Every `num_replicas`-th position from `rank` on, equally many for all ranks; the last ones may exceed the data.

    A PaddedDataset turns those into images that do not count: all processes run equally many batches of the same sizes,
    as collective operations need. A DistributedSampler, so that Lightning does not replace it.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


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
    """Resumes mid-epoch by itself; the empty state_dict marks it as resumable for Lightning.

    As a generator, it asks the sampler on its first batch: Lightning creates the iterator before it restores the
    progress.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def default_num_workers() -> int:
    """One process per core, at most 8."""
    return min(8, os.cpu_count() or 1)
