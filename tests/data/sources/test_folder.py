import re

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from nsaug.data import Folder
from nsaug.utils.errors import UserError
from tests.data.helpers import fit_data, make_tree, open_test


def labels_by_folder(images):
    return {name.split("/")[1]: label for name, label in zip(images.ids, images.labels, strict=True)}


def test_labels_by_sorted_name(tmp_path):
    make_tree(tmp_path / "train", ["b", "a", "c"])
    make_tree(tmp_path / "val", ["c", "a"])
    data = Folder(root=str(tmp_path), val_fraction=0.25)
    data.setup("fit")
    assert data.class_names == ["a", "b", "c"]
    images = open_test(data.test_dataset()).images
    assert labels_by_folder(images) == {"a": 0, "c": 2}, "a class without images changes no other label"
    assert images.ids[0] == "val/a/0.png"


def test_numeric_names_are_ordered_by_value(tmp_path):
    names = [str(number) for number in range(12)]
    make_tree(tmp_path / "train", names)
    make_tree(tmp_path / "val", names)
    data = Folder(root=str(tmp_path))
    data.setup("fit")
    assert data.class_names == names
    images = open_test(data.test_dataset()).images
    assert labels_by_folder(images) == {name: int(name) for name in names}
    assert images.ids == sorted(images.ids), "images keep the order of their paths"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_by_class_list(tmp_path, encoding):
    make_tree(tmp_path / "train", ["a", "bär"])
    (tmp_path / "classes.txt").write_text("bär\nz\r\n\n a\n", encoding=encoding)
    for classes in (["bär", "z", "a"], str(tmp_path / "classes.txt")):
        data = Folder(root=str(tmp_path), classes=classes)
        data.setup("fit")
        assert labels_by_folder(data.train_set) == {"a": 2, "bär": 0}
        assert data.num_classes == 3


def test_images_match_their_ids(tmp_path):
    make_tree(tmp_path / "train" / "a", ["deep", "deeper"])
    make_tree(tmp_path / "train", ["b"])
    data = fit_data(Folder(root=str(tmp_path), val_fraction=0.25, crop="none", hflip=0))
    for images in (data.train_set, data.val_set):
        for index in range(len(images)):
            image, label, name = images[index]
            stored = Image.open(tmp_path / name).getpixel((0, 0))
            torch.testing.assert_close(image[:, 4, 4] * 255, torch.tensor(stored).float())
            assert label == (0 if name.startswith("train/a/") else 1)


def test_unknown_layouts_are_refused_in_one_line(tmp_path):
    make_tree(tmp_path / "full" / "train", ["a", "b"])
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    (tmp_path / "flat" / "train").mkdir(parents=True)
    cases = {
        "missing": "does not exist: type data.root=PATH",
        "empty": "class folders without images",
        "flat": "has no class folders",
    }
    for root, message in cases.items():
        with pytest.raises(UserError, match=re.escape(message)) as error:
            Folder(root=str(tmp_path / root)).setup("fit")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"has no val/ folder: type data.root=PATH"):
        Folder(root=str(tmp_path / "full")).test_dataset().setup()
    with pytest.raises(UserError, match=r"1 folders that are not classes \(a\): expected names such as b, c"):
        Folder(root=str(tmp_path / "full"), classes=["b", "c"]).setup("fit")
    with pytest.raises(UserError, match=r"data.classes=.* does not exist"):
        Folder(root=str(tmp_path / "full"), classes=str(tmp_path / "no.txt"))


def test_empty_classes_are_named(tmp_path, caplog):
    make_tree(tmp_path / "train", ["a", "b"])
    (tmp_path / "val" / "b").mkdir(parents=True)
    make_tree(tmp_path / "val", ["a"])
    data = Folder(root=str(tmp_path), classes=["a", "b", "z"], val_fraction=0.25)
    data.setup("fit")
    assert "train has no images of 1 of the 3 classes (z)" in caplog.text
    test_data = open_test(data.test_dataset())
    assert test_data.notes == ["2 of 3 classes have no images (b, z)"]
    assert "Folder: 2 of 3 classes have no images (b, z)" in caplog.text


def test_empty_names_are_refused(tmp_path):
    """`data.root=$UNSET` would read the working directory, and `data.train=` the splits as classes."""
    for name in ("root", "train", "test", "classes"):
        with pytest.raises(ValidationError, match="should not be empty"):
            Folder(**{"root": str(tmp_path), name: ""})


def test_long_names_are_one_line(tmp_path):
    make_tree(tmp_path / "train", ["a", "b"])
    with pytest.raises(UserError, match=r"^data.root=x* does not exist: type data.root=PATH"):
        Folder(root="x" * 300).setup("fit")
    with pytest.raises(UserError, match=r"has no x*/ folder: type data.root=PATH"):
        Folder(root=str(tmp_path), train="x" * 300).setup("fit")


def test_names_in_another_unicode_form_are_explained(tmp_path):
    """A copy from another system may have decomposed names, which look the same."""
    make_tree(tmp_path / "train", ["caf\u00e9", "dog"])
    make_tree(tmp_path / "val", ["cafe\u0301", "dog"])
    with pytest.raises(UserError, match=r"val has a folder .*, which differs from the class .* \(NFC, NFD\): rename"):
        Folder(root=str(tmp_path)).test_dataset().setup()
