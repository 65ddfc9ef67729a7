"""Which of a data set's images are judged, and what is to be said of the choice."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from nsaug.data.dataset import label_set
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from nsaug.utils.types import NonNegativeInt, PositiveInt, validated_dataclass


@validated_dataclass
class Subset:
    """A list of images where the data hold some of it, else a seeded subset where they are many.

    Attributes:
        seed: of the subset, and of all draws.
        max_images: the size of the subset; None takes all.
        image_list: a text file with an image's file name on each line, after whatever folders, such as RobustBench's
            imagenet_test_image_ids.txt; extensions do not count.
    """

    seed: NonNegativeInt = 0
    max_images: PositiveInt | None = None
    image_list: str | None = None

    def of(self, images: Any, classes: list[int] | None = None, listed: bool = False) -> tuple[Any, list[str]]:
        """The chosen ones of an `ImageSet`, in its own order, and what a reader has to know of the choice.

        Args:
            classes: those that count: images of none of them are left out.
            listed: whether it is an error that the list names none of the images.
        """
        notes = []
        wanted = _names(self.image_list) if self.image_list else frozenset()
        named = [at for at, name in enumerate(images.ids) if Path(name).stem in wanted]
        if wanted and listed and not named:
            raise UserError(f"suite.image_list={self.image_list} names none of the {len(images):,} test images")
        if named:
            images = images.subset(named)
            notes.append(f"{len(named):,} images of the {len(wanted):,} in {Path(str(self.image_list)).name}")
        if classes is not None:
            known = set(classes)
            images = images.subset(
                [at for at, each in enumerate(images.labels) if not known.isdisjoint(label_set(each))]
            )
            notes.append(f"answers among {len(known):,} classes")
        whole = len(images)
        if not whole:
            raise UserError("none of the images is of a class that counts: leave out what is judged on them")
        if named or self.max_images is None or whole <= self.max_images:
            return images, notes
        chosen = torch.randperm(whole, generator=make_generator("cpu", self.seed))[: self.max_images]
        told = f"{self.max_images:,} of {whole:,} images, drawn with seed {self.seed}"
        return images.subset(chosen.sort().values.tolist()), [*notes, told]


@cache
def _names(path: str) -> frozenset[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"suite.image_list={path} does not exist: name a text file with an image's name on each line")
    return frozenset(Path(line.strip()).stem for line in file.read_text().splitlines() if line.strip())
