"""How images come to a model: in which order, augmented by which draws, and what becomes of unreadable ones."""

import math
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
    """Training images whose augmentation is a function of where they are asked for, whoever asks and when.

    Its keys are whole numbers of which the last is an image's position: (epoch, position), say.
    """

    images: ImageSet
    seed: int
    unreadable: Tensor
    """Whether an image, by position, could not be read and gave its place to the next; shared by all processes."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        for further in range(len(self)):
            position = (key[-1] + further) % len(self)
            try:
                if get_worker_info() is not None:  # whose generators are nobody else's: putting them back is dear
                    seed_all(self.seed, Stream.AUGMENTATION, *key)
                    return self.images[position]
                with seed_scope(self.seed, Stream.AUGMENTATION, *key):
                    return self.images[position]
            except UnreadableImage:
                self.unreadable[position] = True
        raise UserError("none of the training images can be read")


class ResumableSampler(DistributedSampler[Any]):
    """Keys of an `Augmented` set in an order that is a function of (seed, epoch), from wherever the run stands.

    Each rank has as many as any other: what is left over is left out where `whole` batches are wanted, else the first
    ones come again. A kind of DistributedSampler, so that Lightning leaves it alone.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        whole: bool,
        place: Callable[[], tuple[int, int]],
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        """`place` tells the epoch, and how many of its batches are done; it is asked when the first key is."""
        super().__init__(range(count), num_replicas=ranks, rank=rank, drop_last=whole)  # type: ignore[arg-type]
        self.count = count
        self.key_seed = seed
        self.batch_size = batch_size
        self.place = place

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, done = self.place()
        order = torch.randperm(
            self.count, generator=make_generator("cpu", self.key_seed, Stream.DATA_ORDER, epoch)
        ).tolist()
        order = (order * 2)[: self.total_size]  # once more at most: there are no fewer images than ranks
        mine = order[self.rank : self.total_size : self.num_replicas]
        batches = len(mine) / self.batch_size
        batches = int(batches) if self.drop_last else math.ceil(batches)
        return iter([(epoch, position) for position in mine[done % batches * self.batch_size :]])


class ResumableDataLoader(DataLoader[Any]):
    """Goes on where a run stands by itself, and says so to Lightning by having a state, of which there is none."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Asks for the first batch no sooner than it is wanted: Lightning makes the iterator before it restores a run.
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class SkipUnreadable(Dataset[Any]):
    """An image set that gives None for an image that cannot be read."""

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images[index]
        except UnreadableImage:
            return None


def collate_readable(batch: list[Any]) -> Any:
    found = [each for each in batch if each is not None]
    return default_collate(found) if found else None
