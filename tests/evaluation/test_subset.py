"""Which images are judged: the same for one seed, those of a list, those of the classes that count."""

import pytest

from nsaug.data import ImageSet
from nsaug.evaluation import Subset
from nsaug.utils.errors import UserError


def images(n=100):
    """Images whose class is their number modulo ten, the second half with a second one."""
    labels = [at % 10 if at < n // 2 else (at % 10, 50) for at in range(n)]
    return ImageSet([f"val/ILSVRC2012_val_{at:08d}.JPEG" for at in range(n)], labels, lambda at: at)


def test_a_subset_is_seeded_and_ordered():
    chosen, notes = Subset(max_images=10).of(images())
    assert chosen.ids == sorted(set(chosen.ids)) == Subset(max_images=10).of(images())[0].ids
    assert len(chosen) == 10
    assert chosen.ids != Subset(max_images=10, seed=1).of(images())[0].ids
    assert notes == ["10 of 100 images, drawn with seed 0"]
    for most in (None, 100, 200):
        whole, notes = Subset(max_images=most).of(images())
        assert (len(whole), notes) == (100, [])


def test_images_of_other_classes_are_left_out_before_a_subset_is_drawn():
    chosen, notes = Subset(max_images=8).of(images(), [3, 50])
    assert len(chosen) == 8
    assert all(label == 3 or 50 in label for label in chosen.labels)
    assert notes == ["answers among 2 classes", "8 of 55 images, drawn with seed 0"]


def test_a_list_names_images_whatever_their_folder_and_extension(tmp_path):
    names = tmp_path / "ids.txt"
    names.write_text("n1/ILSVRC2012_val_00000041.JPEG\nILSVRC2012_val_00000007.png\n\nx/ILSVRC2012_val_00000999.JPEG\n")
    chosen, notes = Subset(image_list=str(names), max_images=1).of(images(), listed=True)
    assert [name[-13:-5] for name in chosen.ids] == ["00000007", "00000041"]
    assert notes == ["2 images of the 3 in ids.txt"]
    chosen, notes = Subset(image_list=str(names)).of(images(), [7])
    assert (list(chosen.labels), notes) == ([7], ["2 images of the 3 in ids.txt", "answers among 1 classes"])
    with pytest.raises(UserError, match="none of the images is of a class that counts"):
        Subset(image_list=str(names)).of(images(), [2])


def test_data_that_a_list_does_not_name_are_drawn_from(tmp_path):
    names = tmp_path / "ids.txt"
    names.write_text("other\n")
    selection = Subset(image_list=str(names), max_images=10)
    assert selection.of(images())[1] == ["10 of 100 images, drawn with seed 0"]
    with pytest.raises(UserError, match=r"suite.image_list=.*ids.txt names none of the 100 test images"):
        selection.of(images(), listed=True)
    with pytest.raises(UserError, match=r"suite.image_list=nowhere.txt does not exist: name a text file"):
        Subset(image_list="nowhere.txt").of(images())
