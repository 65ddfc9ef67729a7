"""Names that several data sets share: classes by index, and file names of ImageNet's validation images."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

from timm.data import ImageNetInfo

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

VAL_IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
"""Name of a validation image; its number starts at 1."""


@cache
def _imagenet() -> ImageNetInfo:
    """timm's names of ImageNet's classes; it reads 2.5 MB of text."""
    return ImageNetInfo("imagenet-1k")


@cache
def wnids() -> list[str]:
    """WordNet ids of ImageNet's 1,000 classes by index, as in all pretrained models; timm's list."""
    return list(_imagenet().label_names())


@cache
def spellings(name: str) -> frozenset[str]:
    """Ways to write a class name, normalized; `n02099601` and `Golden_Retriever` share `golden retriever`."""
    names = {name, name.partition(",")[0]}  # the first synonym
    if name in wnids():
        description = _imagenet().label_name_to_description(name)
        names |= {description, description.partition(",")[0]}
    return frozenset(re.sub(r"[\s_-]+", " ", text).strip().casefold() for text in names)


def compare_class_order(names: Sequence[str], others: Sequence[str]) -> Literal["same", "different", "unknown"]:
    """Compare two lists of class names by index, whatever their spelling.

    Returns:
        "different" if a name is at another index in the other list, "unknown" if names have no counterpart.
    """
    if list(names) == list(others):
        return "same"
    if len(names) != len(others):
        return "unknown"
    first, second = [spellings(name) for name in names], [spellings(name) for name in others]
    missing = [ours for ours, theirs in zip(first, second, strict=True) if not ours & theirs]
    if not missing:
        return "same"
    known: frozenset[str] = frozenset().union(*second)
    return "different" if any(ours & known for ours in missing) else "unknown"
