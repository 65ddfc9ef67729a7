import re

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo

from nsaug.data.names import wnids
from nsaug.data.testsets.shape_texture import (
    CATEGORIES,
    CLASS_INDICES,
    shape_texture_decisions,
    shape_texture_labels,
)
from nsaug.utils.errors import UserError

WORDS = {  # one of them is in WordNet's description of every class of the category
    "airplane": "airplane",
    "bear": r"\bbear\b",
    "bicycle": "bicycle",
    "bird": "bird|finch|thrush|bulbul|crow|eagle|owl|grouse|parrot|cockatoo|lories|cuckoo|merganser|swan|stork|heron"
    "|egret|gallinule|coot|turnstone|sandpiper|penguin",
    "boat": "boat",
    "bottle": "bottle|jug",
    "car": r"\bcar\b",
    "cat": r"\bcat\b|feline",
    "chair": "chair",
    "clock": "clock",
    "dog": "dog|hound|terrier|spaniel|schnauzer|retriever|setter|collie|Bouvier|breed|pinscher"
    "|poodle|griffon|corgi|Sennenhunde",
    "elephant": "elephant",
    "keyboard": "keyboard",
    "knife": "knife",
    "oven": r"\boven\b",
    "truck": r"truck|\bvan\b",
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_classes_belong_to_their_category(category):
    info = ImageNetInfo("imagenet-1k")
    for index in CLASS_INDICES[category]:
        description = info.index_to_description(index, detailed=True)
        assert re.search(WORDS[category], description), description


def test_dogs_are_the_breeds_of_imagenet():
    """ImageNet's 118 breeds are consecutive; the published list has 109 of them."""
    first, last = wnids().index("n02085620"), wnids().index("n02113978")  # Chihuahua, Mexican hairless
    assert last - first + 1 == 118
    assert all(first <= index <= last for index in CLASS_INDICES["dog"])


def test_categories_have_the_published_numbers_of_classes():
    numbers = {category: len(indices) for category, indices in CLASS_INDICES.items()}
    assert numbers == {
        "airplane": 1, "bear": 4, "bicycle": 2, "bird": 49, "boat": 5, "bottle": 7, "car": 3, "cat": 6, "chair": 4,
        "clock": 3, "dog": 109, "elephant": 2, "keyboard": 2, "knife": 1, "oven": 1, "truck": 8,
    }  # fmt: skip
    indices = [index for indices in CLASS_INDICES.values() for index in indices]
    assert len(set(indices)) == len(indices) == 207
    assert list(CATEGORIES) == sorted(CATEGORIES), "the order of the authors' code, which decides ties"


def test_decisions_follow_the_mean_probability():
    """As in the authors' code: a loop over the categories, in float64."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    probabilities = logits.softmax(1)
    expected = []
    for row in probabilities.numpy():
        means = {category: np.mean(np.take(row, indices)) for category, indices in CLASS_INDICES.items()}
        expected.append(CATEGORIES.index(max(means, key=means.__getitem__)))
    assert len(set(expected)) > 5
    assert shape_texture_decisions(probabilities).tolist() == expected
    assert shape_texture_decisions(probabilities.float()).tolist() == expected


def test_mean_differs_from_maximum_and_sum():
    probabilities = torch.zeros(1, 1000)
    probabilities[0, list(CLASS_INDICES["dog"])] = 0.5 / 109  # the largest sum
    probabilities[0, 285] = 0.3  # the largest maximum: mean 0.05 over 6 cats
    probabilities[0, 766] = 0.2  # the largest mean: 1 oven
    assert CATEGORIES[shape_texture_decisions(probabilities)[0]] == "oven"


def test_labels_of_an_id():
    cat, elephant = CATEGORIES.index("cat"), CATEGORIES.index("elephant")
    assert shape_texture_labels("cat/cat7-elephant1.png") == (cat, elephant)
    assert shape_texture_labels("stimuli/elephant/elephant10-cat3.png") == (elephant, cat)
    for name in ("cat/cat7.png", "cat/cat7-zebra1.png", "cat/cat-elephant.png", "x"):
        with pytest.raises(UserError, match=rf"{name} is not a cue-conflict stimulus: expected a name such as"):
            shape_texture_labels(name)
