"""Selection of the test images to evaluate on, and their order."""

from functools import cache
from pathlib import Path, PurePath

from nsaug.data.dataset import ImageSet, label_set
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.rng import uniform_from_text
from nsaug.utils.types import PositiveInt, Seed, validated_dataclass


@validated_dataclass
class Subset:
    """The images named in a list or, if the list names none of them, a random subset.

    Images are in a random order that depends on the seed and their file names alone: a larger subset starts with the
    smaller one, and images of one name have the same place in all data sets.

    Attributes:
        seed: seed of the order and of the whole evaluation.
        max_images: size of the random subset; None takes all images.
        image_list: text file with one file name per line, such as RobustBench's imagenet_test_image_ids.txt; folders
            and extensions are ignored.
    """

    seed: Seed = 0
    max_images: PositiveInt | None = None
    image_list: str | None = None

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
        listed_names = _read_names(self.image_list) if self.image_list else frozenset()
        listed = [i for i in positions if PurePath(images.ids[i]).stem in listed_names]
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


def _order_key(image_id: str, seed: int) -> tuple[float, str]:
    return uniform_from_text(PurePath(image_id).stem, seed), image_id


@cache
def _read_names(path: str) -> frozenset[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"suite.image_list={path} does not exist: name a text file with one image name per line")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"suite.image_list={path} cannot be read ({first_line(error)}): name a text file") from error
    return frozenset(PurePath(line.strip()).stem for line in lines if line.strip())
