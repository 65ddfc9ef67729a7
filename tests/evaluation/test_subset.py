"""Selection of images: by seed, by a list of names, by class."""

import pytest

from nsaug.data import ImageSet
from nsaug.evaluation import Subset
from nsaug.utils.errors import UserError


def make_images(n=100):
    """Images whose class is their index modulo ten; the second half has class 50, too."""
    labels = [i % 10 if i < n // 2 else (i % 10, 50) for i in range(n)]
    return ImageSet([f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(n)], labels, lambda i: i)


def test_subset_is_seeded_and_ordered():
    images, notes = Subset(max_images=10).select(make_images())
    assert images.ids == sorted(set(images.ids)) == Subset(max_images=10).select(make_images())[0].ids
    assert len(images) == 10
    assert images.ids != Subset(max_images=10, seed=1).select(make_images())[0].ids
    assert notes == ["10 of 100 images, drawn with seed 0"]
    for max_images in (None, 100, 200):
        images, notes = Subset(max_images=max_images).select(make_images())
        assert (len(images), notes) == (100, [])


def test_classes_are_selected_before_the_subset_is_drawn():
    images, notes = Subset(max_images=8).select(make_images(), [3, 50])
    assert len(images) == 8
    assert all(label == 3 or 50 in label for label in images.labels)
    assert notes == ["predictions restricted to 2 classes", "8 of 55 images, drawn with seed 0"]


def test_image_list_ignores_folders_and_extensions(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("n1/ILSVRC2012_val_00000041.JPEG\nILSVRC2012_val_00000007.png\n\nx/ILSVRC2012_val_00000999.JPEG\n")
    images, notes = Subset(image_list=str(path), max_images=1).select(make_images(), require_match=True)
    assert [name[-13:-5] for name in images.ids] == ["00000007", "00000041"]
    assert notes == ["2 images of the 3 in ids.txt"]
    images, notes = Subset(image_list=str(path)).select(make_images(), [7])
    assert list(images.labels) == [7]
    assert notes == ["2 images of the 3 in ids.txt", "predictions restricted to 1 classes"]
    with pytest.raises(UserError, match="no image belongs to the selected classes"):
        Subset(image_list=str(path)).select(make_images(), [2])


def test_image_list_without_a_match_falls_back_to_a_random_subset(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("other\n")
    subset = Subset(image_list=str(path), max_images=10)
    assert subset.select(make_images())[1] == ["10 of 100 images, drawn with seed 0"]
    with pytest.raises(UserError, match=r"suite.image_list=.*ids.txt names none of the 100 test images"):
        subset.select(make_images(), require_match=True)
    with pytest.raises(UserError, match=r"suite.image_list=nowhere.txt does not exist: name a text file"):
        Subset(image_list="nowhere.txt").select(make_images())
