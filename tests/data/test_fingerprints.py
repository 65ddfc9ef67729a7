import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from nsaug.data import Folder, ImageSet
from nsaug.data.files import FileLoader, find_images, relative_ids
from nsaug.data.fingerprints import UNREADABLE, fingerprints
from nsaug.utils.errors import UserError
from tests.data.helpers import make_tree, open_test


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nsaug" / "fingerprints"


@pytest.fixture
def images(tmp_path):
    make_tree(tmp_path / "data", ["a", "b"], images=3)
    return read(tmp_path / "data")


def read(root):
    paths = find_images(root)
    return ImageSet(relative_ids(paths, root), [len(path) % 2 for path in paths], FileLoader(paths))


def forbid_reading(monkeypatch):
    def read_bytes(path):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_content_is_hashed(images):
    expected = [hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest() for path in images.load.paths]
    assert fingerprints(images.load, range(6)) == expected
    assert [images.load.fingerprint(index) for index in range(6)] == expected
    assert fingerprints(images.load, [4, 0]) == [expected[4], expected[0]]


def test_copies_have_the_same_fingerprints(images, tmp_path):
    """Other path, other modification times."""
    shutil.copytree(tmp_path / "data", tmp_path / "copy" / "of" / "data", copy_function=shutil.copyfile)
    copy = read(tmp_path / "copy" / "of" / "data")
    assert copy.fingerprints() == images.fingerprints()
    assert copy.digest() == images.digest()


def test_unchanged_files_are_read_once(images, monkeypatch):
    expected = images.fingerprints()
    forbid_reading(monkeypatch)
    assert images.fingerprints() == expected
    assert images.subset([5, 1]).fingerprints() == [expected[5], expected[1]]


def test_changed_files_are_read_again(images):
    before = images.fingerprints()
    path = Path(images.load.paths[2])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")  # of the same size
    os.utime(path, ns=(1, 1))
    after = images.fingerprints()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True, True, True]
    path.write_bytes(content)
    os.utime(path, ns=(2, 2))
    assert images.fingerprints() == before


def test_memo_keeps_one_version_of_each_file(images, cache):
    images.subset([0, 1]).fingerprints()
    images.subset([1, 2]).fingerprints()
    os.utime(images.load.paths[0], ns=(3, 3))
    images.fingerprints()
    (path,) = cache.iterdir()
    assert len(json.loads(path.read_text())) == 6


def test_text_of_an_image_has_id_label_and_content(images):
    texts = images.fingerprints()
    assert len(set(texts)) == 6
    for changes in ({"ids": ["x", *images.ids[1:]]}, {"labels": [7, *images.labels[1:]]}):
        other = ImageSet(**{"ids": images.ids, "labels": images.labels, "load": images.load} | changes)
        changed = [ours != theirs for ours, theirs in zip(texts, other.fingerprints(), strict=True)]
        assert changed == [True] + 5 * [False]
        assert other.digest() != images.digest()
    assert images.subset([3, 4]).fingerprints() == texts[3:5]
    assert images.subset([3, 4, 5]).subset([2, 0]).fingerprints() == [texts[5], texts[3]]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"a": 1}', '{"a": [1]}', "[" * 100_000, "\udcff"])
def test_damaged_memo_is_replaced(images, cache, content):
    expected = images.fingerprints()
    (path,) = cache.iterdir()
    good = path.read_text()
    path.write_text(content, errors="surrogateescape")
    assert images.fingerprints() == expected
    assert path.read_text() == good


def test_cache_that_cannot_be_written_is_ignored(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert images.fingerprints() == images.fingerprints()


def test_user_without_home(images, tmp_path, monkeypatch):
    def fail(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(fail))
    assert images.fingerprints() == images.fingerprints()


def test_unreadable_files_are_not_remembered(images, monkeypatch):
    def fail(path):
        raise PermissionError(path)

    with monkeypatch.context() as patch:
        patch.setattr("nsaug.data.fingerprints.open_regular", fail)
        assert fingerprints(images.load, range(6)) == 6 * [UNREADABLE]
    assert UNREADABLE not in fingerprints(images.load, range(6))


def test_pipes_are_unreadable(images):
    """Reading one would wait forever."""
    path = Path(images.load.paths[1])
    path.unlink()
    os.mkfifo(path)
    assert fingerprints(images.load, [1]) == [UNREADABLE]


def test_broken_links_are_unreadable(images):
    path = Path(images.load.paths[1])
    path.unlink()
    path.symlink_to("gone.png")
    contents = fingerprints(images.load, range(6))
    assert contents[1] == UNREADABLE
    assert contents.count(UNREADABLE) == 1


def fill(root):
    read(Path(root)).fingerprints()


def test_several_processes_share_a_memo(tmp_path, cache, monkeypatch):
    make_tree(tmp_path / "data", ["a"], images=200, size=(4, 4))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(str(tmp_path / "data"),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    forbid_reading(monkeypatch)
    assert len(read(tmp_path / "data").fingerprints()) == 200
    assert len(list(cache.iterdir())) == 1, "no temporary file is left"


def test_loader_without_fingerprint_is_refused():
    class Noise:
        def __call__(self, index):
            return Image.new("RGB", (8, 8))

    with pytest.raises(UserError, match=r"Noise has no method fingerprint\(index\): add one that returns text that"):
        ImageSet(["a"], [0], Noise()).fingerprints()


def test_loader_of_a_user_is_asked_for_every_image():
    class Squares:
        def __call__(self, index):
            return Image.new("RGB", (8, 8))

        def fingerprint(self, index):
            return f"square {index**2}"

    assert ImageSet(["a", "b", "c"], [0, 0, 1], Squares()).fingerprints() == [
        "a\x000\0square 0", "b\x000\0square 1", "c\x001\0square 4",
    ]  # fmt: skip


def test_empty_set_has_a_digest():
    assert ImageSet([], [], FileLoader([])).fingerprints() == []


def test_folder_evaluates_with_content_fingerprints(tmp_path):
    make_tree(tmp_path / "val", ["a", "b"])
    data = open_test(Folder(root=str(tmp_path)).test_dataset())
    before = data.images.digest()
    os.utime(tmp_path / "val" / "a" / "0.png", ns=(5, 5))
    assert open_test(Folder(root=str(tmp_path)).test_dataset()).images.digest() == before
