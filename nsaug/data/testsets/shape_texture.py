"""The 16 categories of the cue-conflict stimuli, and decisions among them (Geirhos et al., arXiv 1811.12231)."""

import re
from pathlib import PurePosixPath

import torch
from torch import Tensor

from nsaug.utils.errors import UserError


def _indices(ranges: str) -> tuple[int, ...]:
    """Expand text such as "3 5-7" to 3, 5, 6, 7."""
    bounds = [part.split("-") for part in ranges.split()]
    return tuple(index for bound in bounds for index in range(int(bound[0]), int(bound[-1]) + 1))


CLASS_INDICES: dict[str, tuple[int, ...]] = {
    "airplane": _indices("404"),
    "bear": _indices("294-297"),
    "bicycle": _indices("444 671"),
    "bird": _indices("8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145"),
    "boat": _indices("472 554 625 814 914"),
    "bottle": _indices("440 720 737 898-899 901 907"),
    "car": _indices("436 511 817"),
    "cat": _indices("281-286"),
    "chair": _indices("423 559 765 857"),
    "clock": _indices("409 530 892"),
    "dog": _indices("152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268"),
    "elephant": _indices("385-386"),
    "keyboard": _indices("508 878"),
    "knife": _indices("499"),
    "oven": _indices("766"),
    "truck": _indices("555 569 656 675 717 734 864 867"),
}
"""ImageNet's class indices of each category, as published; other classes are in no category."""
CATEGORIES = tuple(CLASS_INDICES)


def shape_texture_labels(image_id: str) -> tuple[int, int]:
    """Categories of the shape and the texture, by index, given an id such as cat/cat7-elephant1.png.

    Raises:
        UserError: the name has another form.
    """
    match = re.fullmatch(r"([a-z]+)\d+-([a-z]+)\d+", PurePosixPath(image_id).stem)
    if match is None or not {match[1], match[2]} <= CLASS_INDICES.keys():
        raise UserError(f"{image_id} is not a cue-conflict stimulus: expected a name such as cat7-elephant1.png")
    return CATEGORIES.index(match[1]), CATEGORIES.index(match[2])


def shape_texture_decisions(probabilities: Tensor) -> Tensor:
    """The category of largest probability, given the probabilities (B, 1000) of ImageNet's classes.

    A category's probability is the mean over its classes, as in the paper.

    Returns:
        Indices into `CATEGORIES`, (B,).
    """
    means = [probabilities[:, list(indices)].mean(1) for indices in CLASS_INDICES.values()]
    return torch.stack(means, 1).argmax(1)
