import pytest

from nsaug.data import names
from nsaug.data.names import compare_class_order, wnids


@pytest.mark.parametrize(
    ("first", "result"),
    [
        (["cat", "golden retriever", "ship"], "same"),
        (["Cat, house cat", "Golden_Retriever", " ship "], "same"),
        (["golden-retriever", "cat", "ship"], "different"),
        (["feline", "cat", "ship"], "different"),
        (["feline", "golden retriever", "vessel"], "unknown"),
        (["cat", "golden retriever"], "unknown"),
    ],
)
def test_class_order(first, result):
    assert compare_class_order(first, ["cat", "golden_retriever", "ship"]) == result


def test_names_of_imagenet_are_read_once(monkeypatch):
    calls = []
    info = names.ImageNetInfo
    monkeypatch.setattr(names, "ImageNetInfo", lambda subset: calls.append(subset) or info(subset))
    for function in (names._imagenet, names.wnids, names.spellings):
        function.cache_clear()
    assert compare_class_order(wnids()[:3], [name.upper() for name in wnids()[:3]]) == "same"
    assert len(calls) == 1


def test_class_order_of_imagenet():
    """transformers writes descriptions, some of which occur twice."""
    described = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark, man-eater"]
    assert compare_class_order(described, wnids()[:3]) == "same"
    assert compare_class_order(described[::-1], wnids()[:3]) == "different"
    assert wnids()[134] != wnids()[517]
    assert compare_class_order(["crane"] * 2, [wnids()[134], wnids()[517]]) == "same"
