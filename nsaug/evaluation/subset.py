"""Selection of the test images to evaluate on, and their order."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from nsaug.data.dataset import ImageSet, label_set
from nsaug.utils.errors import UserError
from nsaug.utils.files import read_lines
from nsaug.utils.rng import uniform_from_text
from nsaug.utils.types import PositiveInt, Seed, Text, validated_dataclass


@validated_dataclass
class Subset:
    """The images named in a list or, if the list names none of them, a random subset.

    Images are in a random order that depends on the seed and their file names alone: a larger subset starts with the
    smaller one, and images of one name have the same place in all data sets.

    Attributes:
        seed: seed of the order and of the whole evaluation.
        max_images: size of the random subset; None takes all images.
        image_list: text file with one file name per line, such as RobustBench's imagenet_test_image_ids.txt;
            extensions are ignored, and so are folders, except where several images have the same name.
    """

    seed: Seed = 0
    max_images: PositiveInt | None = None
    image_list: Text | None = None

    def __post_init__(self) -> None:
        if self.image_list is not None:
            _read_names(self.image_list)  # a list that cannot be read is an error before work starts

    def select(
        self, images: ImageSet, classes: list[int] | None = None, require_match: bool = False
    ) -> tuple[list[int], list[str]]:
        """Return the positions of the selected images, in random order, and notes for the report.

        Args:
            images: all images.
            classes: class indices to keep; None keeps all.
            require_match: whether a list that names none of the images is an error.
        """
        notes = []
        positions = list(range(len(images)))
        listed_names = frozenset() if self.image_list is None else _read_names(self.image_list)
        listed = self._find_listed(images.ids, listed_names)
        if listed_names and require_match and not listed:
            raise UserError(f"suite.image_list={self.image_list} names none of the {len(images):,} test images")
        if listed:
            positions = listed
            notes.append(f"{len(listed):,} images of the {len(listed_names):,} in {Path(str(self.image_list)).name}")
        if classes is not None:
            kept = set(classes)
            positions = [i for i in positions if not kept.isdisjoint(label_set(images.labels[i]))]
            notes.append(f"predictions restricted to {len(kept):,} classes")
        count = len(positions)
        if not count:
            raise UserError("no image belongs to the selected classes: remove the benchmark from the suite")
        positions.sort(key=lambda i: _order_key(images.ids[i], self.seed))
        if listed or self.max_images is None or count <= self.max_images:
            return positions, notes
        note = f"{self.max_images:,} of {count:,} images, drawn with seed {self.seed}"
        return positions[: self.max_images], [*notes, note]

    def _find_listed(self, ids: Sequence[str], names: frozenset[PurePath]) -> list[int]:
        """Positions of the listed images; those that share their name with others are compared with their folder."""
        by_name: dict[str, list[int]] = {}
        for position, image_id in enumerate(ids):
            by_name.setdefault(PurePath(image_id).stem, []).append(position)
        listed: set[int] = set()
        for name in names:
            matches = by_name.get(name.stem, [])
            if len(matches) > 1:
                if not name.parent.name:
                    raise UserError(
                        f"suite.image_list={self.image_list}: {name} is the name of {len(matches):,} images: write it"
                        " with its folder, as CLASS/NAME"
                    )
                matches = [i for i in matches if PurePath(ids[i]).parent.name == name.parent.name]
            listed.update(matches)
        return sorted(listed)


def _order_key(image_id: str, seed: int) -> tuple[float, str]:
    return uniform_from_text(PurePath(image_id).stem, seed), image_id


@cache
def _read_names(path: str) -> frozenset[PurePath]:
    return frozenset(map(PurePath, read_lines(path, "suite.image_list", "one image name per line")))
