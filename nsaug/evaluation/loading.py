"""Loads the images of units of work ahead of time, in worker processes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nsaug.data.dataset import ImageSet, UnreadableImage
from nsaug.evaluation.units import Unit


@dataclass(frozen=True)
class Images:
    """The readable images of a unit.

    Attributes:
        images: (n, 3, H, W) in [0, 1].
        labels: (n,), or sets of labels (n, k).
        ids: their ids.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True)
class LoadFailure:
    """An error other than an unreadable image."""

    error: Exception


@dataclass(frozen=True)
class _Loadable(Dataset[Any]):
    """All image sets; an index is (number of the set, position)."""

    image_sets: Sequence[ImageSet]

    def __getitem__(self, index: tuple[int, int]) -> Any:
        number, position = index
        try:
            return self.image_sets[number][position]
        except UnreadableImage:
            return None
        except Exception as error:  # ends the unit, not the loader
            return LoadFailure(error)


def _collate(samples: list[Any]) -> Any:
    """Collate without the unreadable images; None if no image is left."""
    failures = [sample for sample in samples if isinstance(sample, LoadFailure)]
    if failures:
        return failures[0]
    readable = [sample for sample in samples if sample is not None]
    return default_collate(readable) if readable else None


def load_units(
    units: Iterable[Unit], image_sets: Sequence[ImageSet], num_workers: int, device: torch.device
) -> Iterator[tuple[Unit, Images | LoadFailure | None]]:
    """Yield units with their images on the device; None for a unit without any readable image.

    While a unit is evaluated, the images of the next one are loaded, so that one unit at most is taken in advance; none
    while an expensive one is evaluated, whose time exceeds that of loading, so that idle processes can take it. Images
    that the previous unit had, too, are not loaded again.

    Args:
        units: taken one by one, when the loading of their images starts.
        image_sets: by `Unit.image_set`.
        num_workers: number of processes; 0 loads in this process, when a unit is asked for.
        device: device of the images.
    """
    taken: deque[tuple[Unit, int, int]] = deque()

    def chunks() -> Iterator[list[tuple[int, int]]]:
        previous = None
        for unit in units:
            block = unit.image_set, unit.positions
            parts: list[list[tuple[int, int]]] = [[]]  # the loader has to be asked for something
            if block != previous:
                indices = [(unit.image_set, position) for position in unit.positions]
                size = -(-len(indices) // max(1, num_workers))
                parts = [indices[start : start + size] for start in range(0, len(indices), size)]
            # Each part that is consumed makes the loader ask for another one: empty ones keep it from running ahead.
            num_empty = len(parts) if unit.expensive else 0
            taken.append((unit, len(parts) if block != previous else 0, num_empty))
            previous = block
            yield from parts
            yield from [[]] * num_empty

    loader = iter(
        DataLoader(
            _Loadable(image_sets),
            batch_sampler=chunks(),
            num_workers=num_workers,
            prefetch_factor=1 if num_workers else None,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )
    )
    images: Images | LoadFailure | None = None
    for chunk in loader:
        unit, num_parts, num_empty = taken.popleft()
        if num_parts:
            parts = [chunk, *(next(loader) for _ in range(num_parts - 1))]
            images = _join([part for part in parts if part is not None], device)
        yield unit, images
        for _ in range(num_empty):
            next(loader)


def _join(parts: list[Any], device: torch.device) -> Images | LoadFailure | None:
    failures = [part for part in parts if isinstance(part, LoadFailure)]
    if failures:
        return failures[0]
    if not parts:
        return None
    images, labels = (torch.cat([part[index].to(device, non_blocking=True) for part in parts]) for index in (0, 1))
    return Images(images, labels, [image_id for part in parts for image_id in part[2]])
