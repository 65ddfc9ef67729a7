"""Selection of images: by seed, by a list of names, by class."""

import pytest

from nsaug.data import ImageSet
from nsaug.evaluation import Subset
from nsaug.utils.errors import UserError


def make_images(n=100):
    """Images whose class is their index modulo ten; the second half has class 50, too."""
    labels = [i % 10 if i < n // 2 else (i % 10, 50) for i in range(n)]
    return ImageSet([f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(n)], labels, lambda i: i)


def select(subset, images=None, *args, **kwargs):
    """The selected images, in order, and notes."""
    images = images or make_images()
    positions, notes = subset.select(images, *args, **kwargs)
    return images.subset(positions), notes


def test_subset_is_seeded():
    images, notes = select(Subset(max_images=10))
    assert images.ids == select(Subset(max_images=10))[0].ids
    assert len(set(images.ids)) == 10
    assert images.ids != select(Subset(max_images=10, seed=1))[0].ids
    assert notes == ["10 of 100 images, drawn with seed 0"]
    for max_images in (None, 100, 200):
        images, notes = select(Subset(max_images=max_images))
        assert (len(images), notes) == (100, [])
        assert len(set(images.ids)) == 100


def test_a_larger_subset_starts_with_the_smaller_one():
    small, large = (select(Subset(max_images=count))[0].ids for count in (10, 40))
    assert large[:10] == small


def test_images_of_one_name_have_the_same_place_in_all_data_sets():
    images = make_images()
    fewer = images.subset([i for i in range(100) if i % 7])
    fewer.ids = [f"elsewhere/{image_id}".replace(".JPEG", ".png") for image_id in fewer.ids]
    stems = [[image_id[-13:-5] for image_id in select(Subset(), images)[0].ids]]
    stems += [[image_id[-12:-4] for image_id in select(Subset(), fewer)[0].ids]]
    assert [stem for stem in stems[0] if int(stem) % 7] == stems[1]


def test_order_is_random():
    labels = select(Subset())[0].labels
    assert len({label for label in labels[:20] if isinstance(label, int)}) > 4, "class by class otherwise"


def test_classes_are_selected_before_the_subset_is_drawn():
    images, notes = select(Subset(max_images=8), None, [3, 50])
    assert len(images) == 8
    assert all(label == 3 or 50 in label for label in images.labels)
    assert notes == ["predictions restricted to 2 classes", "8 of 55 images, drawn with seed 0"]


def test_image_list_ignores_folders_extensions_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "ids.txt"
    lines = "n1/ILSVRC2012_val_00000041.JPEG\nILSVRC2012_val_00000007.png\n\nx/ILSVRC2012_val_00000999.JPEG\n"
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / f"{encoding}.txt"
        path.write_text(lines, encoding=encoding)
        images, notes = select(Subset(image_list=str(path), max_images=1), require_match=True)
        assert sorted(name[-13:-5] for name in images.ids) == ["00000007", "00000041"]
        assert notes == [f"2 images of the 3 in {path.name}"]
    images, notes = select(Subset(image_list=str(path)), None, [7])
    assert list(images.labels) == [7]
    with pytest.raises(UserError, match="no image belongs to the selected classes"):
        select(Subset(image_list=str(path)), None, [2])


def test_image_list_without_a_match_falls_back_to_a_random_subset(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("other\n")
    subset = Subset(image_list=str(path), max_images=10)
    assert select(subset)[1] == ["10 of 100 images, drawn with seed 0"]
    with pytest.raises(UserError, match=r"suite.image_list=.*ids.txt names none of the 100 test images"):
        select(subset, require_match=True)
    with pytest.raises(UserError, match=r"suite.image_list=nowhere.txt does not exist: name a text file"):
        select(Subset(image_list="nowhere.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa" * 9)
    with pytest.raises(UserError, match=r"suite.image_list=.*binary.txt is not text in UTF-8: name a text file"):
        select(Subset(image_list=str(tmp_path / "binary.txt")))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"suite.image_list=.*empty.txt is empty: name a text file"):
        select(Subset(image_list=str(tmp_path / "empty.txt")))


def test_names_that_several_images_share_need_their_folder(tmp_path):
    """Files that are numbered in every class folder: one line must not select one image of every class."""
    ids = [f"val/{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    images = ImageSet(ids, [0] * 5 + [1] * 5, lambda i: i)
    path = tmp_path / "ids.txt"
    path.write_text("cat/0.png\nval/dog/3.JPEG\nfox/1.png\n")
    assert sorted(select(Subset(image_list=str(path)), images)[0].ids) == ["val/cat/0.png", "val/dog/3.png"]
    (tmp_path / "bare.txt").write_text("0.png\n")
    with pytest.raises(UserError, match=r"bare.txt: 0.png is the name of 2 images: write it with its folder, as CLASS"):
        select(Subset(image_list=str(tmp_path / "bare.txt")), images)


def test_order_of_names_that_are_not_utf_8():
    """A loader of the user's own may use file names as they are."""
    images = ImageSet(["a/caf\udce9.png", "a/b.png"], [0, 1], lambda i: i)
    assert sorted(select(Subset(), images)[0].ids) == ["a/b.png", "a/caf\udce9.png"]
