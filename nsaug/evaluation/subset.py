"""Selection of the test images to evaluate on."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from nsaug.data.dataset import label_set
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from nsaug.utils.types import PositiveInt, Seed, validated_dataclass


@validated_dataclass
class Subset:
    """The images named in a list or, if the list names none of them, a random subset.

    Attributes:
        seed: seed of the random subset and of the whole evaluation.
        max_images: size of the random subset; None takes all images.
        image_list: text file with one file name per line, such as RobustBench's imagenet_test_image_ids.txt; folders
            and extensions are ignored.
    """

    seed: Seed = 0
    max_images: PositiveInt | None = None
    image_list: str | None = None

    def select(
        self, images: Any, classes: list[int] | None = None, require_match: bool = False
    ) -> tuple[Any, list[str]]:
        """Return the selected images of an `ImageSet`, in their order, and notes for the report.

        Args:
            classes: class indices to keep; None keeps all.
            require_match: whether a list that names none of the images is an error.
        """
        notes = []
        listed_names = _read_names(self.image_list) if self.image_list else frozenset()
        listed = [i for i, image_id in enumerate(images.ids) if Path(image_id).stem in listed_names]
        if listed_names and require_match and not listed:
            raise UserError(f"suite.image_list={self.image_list} names none of the {len(images):,} test images")
        if listed:
            images = images.subset(listed)
            notes.append(f"{len(listed):,} images of the {len(listed_names):,} in {Path(str(self.image_list)).name}")
        if classes is not None:
            kept = set(classes)
            images = images.subset(
                [i for i, label in enumerate(images.labels) if not kept.isdisjoint(label_set(label))]
            )
            notes.append(f"predictions restricted to {len(kept):,} classes")
        count = len(images)
        if not count:
            raise UserError("no image belongs to the selected classes: remove the benchmark from the suite")
        if listed or self.max_images is None or count <= self.max_images:
            return images, notes
        chosen = torch.randperm(count, generator=make_generator("cpu", self.seed))[: self.max_images]
        note = f"{self.max_images:,} of {count:,} images, drawn with seed {self.seed}"
        return images.subset(chosen.sort().values.tolist()), [*notes, note]


@cache
def _read_names(path: str) -> frozenset[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"suite.image_list={path} does not exist: name a text file with one image name per line")
    return frozenset(Path(line.strip()).stem for line in file.read_text().splitlines() if line.strip())
