import os

import pytest
from PIL import Image

from nsaug.data.files import find_images, folder_names, labeled_files, relative_ids, sort_classes
from nsaug.utils.errors import UserError


def save(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def ids_and_labels(root, *classes):
    paths, labels = labeled_files(root, {name: label for label, name in enumerate(classes)})
    return dict(zip(relative_ids(paths, root), labels, strict=True))


def test_images_at_any_depth_are_sorted_as_text(tmp_path):
    save(*(tmp_path / name for name in ("b.png", "a/z.JPEG", "a-b/x.jpg", "a/deep/er/y.webp")))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    assert relative_ids(find_images(tmp_path), tmp_path) == ["a-b/x.jpg", "a/deep/er/y.webp", "a/z.JPEG", "b.png"]


def test_hidden_entries_are_skipped_at_every_depth(tmp_path):
    save(tmp_path / "cat" / "0.png", tmp_path / "cat" / "deep" / "1.png")
    save(
        tmp_path / ".cache" / "x.png",
        tmp_path / "cat" / "._0.png",
        tmp_path / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png",
        tmp_path / "cat" / "deep" / ".thumbnails" / "small" / "1.png",
    )
    assert folder_names(tmp_path) == ["cat"]
    assert ids_and_labels(tmp_path, "cat") == {"cat/0.png": 0, "cat/deep/1.png": 0}


@pytest.mark.parametrize("hidden", [".data", ".cache/images"])
def test_hidden_parents_of_the_root_do_not_matter(tmp_path, hidden):
    save(tmp_path / hidden / "cat" / "0.png")
    assert ids_and_labels(tmp_path / hidden, "cat") == {"cat/0.png": 0}


def test_other_files_are_counted_in_one_warning(tmp_path, caplog):
    """Extensions that are not read, pipes, and images outside of class folders; hidden files are not mentioned."""
    save(tmp_path / "cat" / "0.png", tmp_path / "dog" / "deep" / "1.PNG", tmp_path / "loose.png")
    for name in ("cat/a.jfif", "cat/b.JFIF", "dog/deep/c.jfif", "dog/d.gif", "dog/e", "cat/.f.gif", "README.txt"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "dog" / "1.png")
    assert ids_and_labels(tmp_path, "cat", "dog") == {"cat/0.png": 0, "dog/deep/1.PNG": 1}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 7 files are not read (3 .jfif, 1 special file, 1 .gif, 1 no extension, ...): images are .jpg,"
        " .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp files"
    ]
    caplog.clear()
    assert len(find_images(tmp_path / "dog")) == 1
    assert "dog: 4 files are not read" in caplog.text


def test_names_of_any_kind(tmp_path):
    """Bytes that are not UTF-8 become escapes in ids; names that differ stay different."""
    names = ["[a]", "$x$", "a\nb", "-dash", "caf\udce9", "x" * 200, "cafe\u0301", "caf\u00e9", "Cat", "cat", "a\u202eb"]
    save(*(tmp_path / name / f"{name}.png" for name in names))
    paths, labels = labeled_files(tmp_path, {name: label for label, name in enumerate(names)})
    ids = relative_ids(paths, tmp_path)
    expected = [name.replace("\udce9", "\\xe9") for name in names]
    assert dict(zip(ids, labels, strict=True)) == {f"{name}/{name}.png": i for i, name in enumerate(expected)}
    for image_id in ids:
        image_id.encode()


def test_ids_of_images_outside_of_the_root(tmp_path):
    save(tmp_path / "other" / "0.png")
    paths = find_images(tmp_path / "other")
    assert relative_ids(paths, tmp_path / "data") == ["../other/0.png"]
    assert relative_ids(paths, tmp_path / "data" / ".." / "oth") == ["../other/0.png"]


def test_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", fail)
    for function in (folder_names, find_images):
        with pytest.raises(UserError, match=f"^{tmp_path} cannot be listed: Permission denied$"):
            function(tmp_path)


def test_pipes_are_skipped(tmp_path):
    save(tmp_path / "cat" / "0.png")
    os.mkfifo(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").symlink_to("1.png")
    assert ids_and_labels(tmp_path, "cat") == {"cat/0.png": 0}


def test_links_to_images_count_and_broken_links_too(tmp_path):
    """A broken link is reported as unreadable later; skipping it would change the images without a message."""
    save(tmp_path / "store" / "a.png")
    (tmp_path / "cat").mkdir()
    for name, target in {"0": "../store/a.png", "1": "../store/gone.png", "2": "2.png"}.items():
        (tmp_path / "cat" / f"{name}.png").symlink_to(target)
    assert list(ids_and_labels(tmp_path, "store", "cat")) == ["cat/0.png", "cat/1.png", "cat/2.png", "store/a.png"]


def test_linked_folders_are_followed(tmp_path):
    save(tmp_path / "store" / "cats" / "0.png", tmp_path / "more" / "1.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cat").symlink_to(tmp_path / "store" / "cats")
    (tmp_path / "store" / "cats" / "more").symlink_to(tmp_path / "more")
    assert ids_and_labels(tmp_path / "train", "cat") == {"cat/0.png": 0, "cat/more/1.png": 0}


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog", "loop", "deep"])
def test_every_real_folder_counts_once(tmp_path, target):
    """A loop, a link to a parent, to another class, to itself, to a sibling: also the other split stays outside."""
    root = tmp_path / "train"
    save(root / "cat" / "0.png", root / "cat" / "deep" / "1.png", root / "dog" / "2.png", tmp_path / "val/cat/3.png")
    expected = {"cat/0.png": 0, "cat/deep/1.png": 0, "dog/2.png": 1}
    for name in ("a", "loop"):  # before and after the folders in the order of names
        (root / "cat" / name).symlink_to(target)
    assert ids_and_labels(root, "cat", "dog") == expected


def test_class_folder_that_links_to_another_class_is_empty(tmp_path):
    save(tmp_path / "dog" / "0.png")
    (tmp_path / "cat").symlink_to("dog")
    assert ids_and_labels(tmp_path, "cat", "dog") == {"dog/0.png": 1}


def test_first_of_several_links_wins(tmp_path):
    save(tmp_path / "store" / "0.png")
    (tmp_path / "cat").mkdir()
    for name in ("b", "a", "c"):
        (tmp_path / "cat" / name).symlink_to("../store")
    assert relative_ids(find_images(tmp_path / "cat"), tmp_path) == ["cat/a/0.png"]


def test_numeric_class_names_sort_by_value():
    assert sort_classes(["10", "9", "0", "100"]) == ["0", "9", "10", "100"]
    assert sort_classes(["010", "009", "100"]) == ["009", "010", "100"]
    assert sort_classes(["1", "01", "2"]) == ["01", "1", "2"], "equal values as text"
    assert sort_classes(["n10", "n9"]) == ["n10", "n9"], "other names as text"
    assert sort_classes(["10", "9", "other"]) == ["10", "9", "other"]
    assert sort_classes(["²", "1"]) == ["1", "²"], "not a number for int()"


def test_folders_that_are_not_classes(tmp_path):
    save(tmp_path / "cat" / "0.png", tmp_path / "fox" / "1.png", tmp_path / "dog" / "2.png")
    with pytest.raises(UserError, match=r"has 1 folders that are not classes \(fox\): expected names such as cat, dog"):
        ids_and_labels(tmp_path, "cat", "dog")
    paths, labels = labeled_files(tmp_path, {"cat": 0, "dog": 1, "fox": None})
    assert (relative_ids(paths, tmp_path), labels) == (["cat/0.png", "dog/2.png"], [0, 1])
