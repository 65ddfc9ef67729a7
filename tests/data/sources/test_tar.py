import io
import shutil
import tarfile

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nsaug.data import Folder, ImageNet, UnreadableImage
from nsaug.data.sources.tar import TarLoader
from nsaug.utils.errors import UserError
from tests.data.helpers import config, fit_data, open_test

SPLITS = ("train", "val")


def tar_of_class_folders(tree, root):
    for split in SPLITS:
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for folder in sorted((tree / split).iterdir(), reverse=True):
                tar.add(folder, f"./{folder.name}")


def tar_of_tars(tree, root):
    """One tar per class in a tar, as ImageNet's training images are distributed."""
    for split in SPLITS:
        with tarfile.open(root / f"{split}.tar", "w") as outer:
            for folder in sorted((tree / split).iterdir(), reverse=True):
                content = io.BytesIO()
                with tarfile.open(fileobj=content, mode="w") as inner:
                    for path in folder.iterdir():
                        inner.add(path, path.name)
                member = tarfile.TarInfo(f"{folder.name}.tar")
                member.size = content.tell()
                content.seek(0)
                outer.addfile(member, content)


def folder_of_tars(tree, root):
    for split in SPLITS:
        (root / split).mkdir()
        (root / split / "._n0.tar").write_bytes(b"resource fork of another system")
        for folder in (tree / split).iterdir():
            with tarfile.open(root / split / f"{folder.name}.tar", "w") as tar:
                for path in folder.iterdir():
                    tar.add(path, path.name)


LAYOUTS = [tar_of_class_folders, tar_of_tars, folder_of_tars]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tars_match_the_folders_that_they_contain(layout, imagenet, tmp_path):
    """The same ids, order, labels, splits and pixels, with worker processes too."""
    layout(imagenet, tmp_path)
    options = {"num_workers": 2, "val_fraction": 0.25}
    folders, tars = (fit_data(ImageNet(root=str(root), **options), config(32)) for root in (imagenet, tmp_path))
    test_folders, test_tars = (open_test(data.test_dataset(), config(32)) for data in (folders, tars))
    pairs = [
        (tars.train_set, folders.train_set),
        (tars.val_set, folders.val_set),
        (test_tars.images, test_folders.images),
    ]
    for ours, theirs in pairs:
        assert ours.ids == theirs.ids
        assert ours.labels == theirs.labels
    test_tars.images[0]  # read in this process before worker processes are forked from it
    loaders = (DataLoader(data.images, 8, num_workers=2) for data in (test_tars, test_folders))
    for ours, theirs in zip(*loaders, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert test_tars.images.digest() == test_folders.images.digest(), "of the contents"


@pytest.fixture
def tree(tmp_path):
    """Two classes with one image per split."""
    for split in SPLITS:
        for position, name in enumerate(("n10", "n9")):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (80 * position, 0, 0)).save(folder / "a.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_are_sorted_as_folders_are(layout, tree, tmp_path):
    layout(tree, tmp_path)
    data = open_test(Folder(root=str(tmp_path)).test_dataset())
    assert data.class_names == ["n10", "n9"], "as text, unlike in timm's reader"
    assert data.images.ids == ["val/n10/a.png", "val/n9/a.png"]
    assert data.images.labels == [0, 1]
    assert [round(255 * float(data.images[index][0][0, 0, 0])) for index in range(2)] == [0, 80]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numeric_classes_are_sorted_by_value(layout, tree, tmp_path):
    for split in SPLITS:
        for name in ("n9", "n10"):
            (tree / split / name).rename(tree / split / name.removeprefix("n"))
    layout(tree, tmp_path)
    data = open_test(Folder(root=str(tmp_path)).test_dataset())
    assert data.class_names == ["9", "10"]
    assert data.images.ids == ["val/10/a.png", "val/9/a.png"]
    assert data.images.labels == [1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_images_are_skipped(layout, tree, tmp_path):
    for split in SPLITS:
        shutil.copytree(tree / split / "n9", tree / split / "n9" / ".ipynb_checkpoints")
        shutil.copy(tree / split / "n9" / "a.png", tree / split / "n9" / "._a.png")
    layout(tree, tmp_path)
    data = open_test(Folder(root=str(tmp_path)).test_dataset())
    assert data.class_names == ["n10", "n9"]
    assert data.images.ids == ["val/n10/a.png", "val/n9/a.png"]


def write_tar(path, *members):
    """A tar with members (name, content)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(level):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(content, "PNG")
    return content.getvalue()


def levels(images):
    """Red level by image name."""
    return dict(
        zip(images.names, (images(index).getpixel((0, 0))[0] for index in range(len(images.names))), strict=True)
    )


def test_classes_are_the_first_folders_as_in_a_tree(tmp_path):
    """Folders at any depth below a class, and a folder around all classes."""
    members = [("cat/2021/a.png", png(1)), ("cat/b.png", png(2)), ("dog/2021/a.png", png(3))]
    write_tar(tmp_path / "plain.tar", *members)
    write_tar(tmp_path / "wrapped.tar", *((f"./data/train/{name}", content) for name, content in members))
    for name in ("plain", "wrapped"):
        images = TarLoader.open(tmp_path / f"{name}.tar")
        assert levels(images) == {"cat/2021/a.png": 1, "cat/b.png": 2, "dog/2021/a.png": 3}
        assert images.classes == ["cat", "cat", "dog"]


def test_the_last_member_of_a_name_counts(tmp_path):
    """As when the tar is unpacked: `tar --append` adds a newer version."""
    write_tar(tmp_path / "a.tar", ("cat/a.png", png(1)), ("dog/a.png", png(2)), ("./cat/a.png", png(3)))
    assert levels(TarLoader.open(tmp_path / "a.tar")) == {"cat/a.png": 3, "dog/a.png": 2}


def test_names_of_any_kind(tmp_path):
    names = ["[a]", "$x$", "a b", "-dash", "caf\udce9", "x" * 120, "cafe\u0301", "caf\u00e9", "Cat", "cat"]
    (tmp_path / "[set]").mkdir()
    for name in names:
        write_tar(tmp_path / "[set]" / f"{name}.tar", (f"{name}.png", png(1)))
    images = TarLoader.open(tmp_path / "[set]")
    expected = [name.replace("\udce9", "\\xe9") for name in names]
    assert sorted(images.names) == sorted(f"{name}/{name}.png" for name in expected)
    assert set(levels(images).values()) == {1}


def test_other_files_are_counted_once(tmp_path, caplog):
    for split in SPLITS:
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for name in ("cat/a.png", "cat/b.webp", "cat/b.jfif", "cat/c.jfif", "dog/a.TIFF", "README", "loose.png"):
                content = png(1)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("dog/b.png")
            link.type, link.linkname = tarfile.LNKTYPE, "cat/a.png"
            tar.addfile(link)
    data = Folder(root=str(tmp_path), val_fraction=0.4)
    data.setup("fit")
    assert sorted(data.train_set.ids + data.val_set.ids) == ["train/cat/a.png", "train/cat/b.webp", "train/dog/a.TIFF"]
    open_test(data.test_dataset())
    assert [record.getMessage().partition(": images are")[0] for record in caplog.records] == [
        f"{tmp_path}/{split}.tar: 5 files are not read (2 .jfif, 1 no extension, 1 link, 1 outside of class folders)"
        for split in SPLITS
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_truncated_tars_are_refused(nested, tmp_path):
    """tarfile itself would stop silently at a cut between members, and at a damaged header."""
    path = tmp_path / "full.tar"
    write_tar(path, *((f"cat/{number}.png", png(number)) for number in range(40)))
    content = path.read_bytes()
    offset = TarLoader.open(path).members[20].offset - tarfile.BLOCKSIZE  # of the header
    damaged = {"cut": content[:offset], "cut header": content[: offset + 100], "cut content": content[: offset + 520]}
    damaged["damaged header"] = content[:offset] + b"\xff" * 512 + content[offset + 512 :]
    damaged["concatenated"] = content + content
    for title, part in damaged.items():
        if nested:
            write_tar(tmp_path / "train.tar", ("cat.tar", part), ("dog.tar", content))
        else:
            (tmp_path / "train.tar").write_bytes(part)
        with pytest.raises(
            UserError, match=r"train.tar cannot be read as a tar file: .*(truncated|damaged|end of data)"
        ):
            pytest.fail(f"{title}: {len(TarLoader.open(tmp_path / 'train.tar').members)} images")


def test_mixed_layouts_are_refused(tree, tmp_path):
    """Such as archives beside the folders that were unpacked from some of them."""
    folder_of_tars(tree, tmp_path)
    shutil.copytree(tree / "train" / "n9", tmp_path / "train" / "n9")
    with pytest.raises(UserError, match=r"train has both tar files \(n10.tar, ...\) and folders \(n9, ...\): move one"):
        Folder(root=str(tmp_path)).setup("fit")


def test_tars_without_class_folders_are_refused(tmp_path):
    contents = {"loose": [("a.png", png(1))], "hidden": [("n9/._a.png", png(1))], "empty": []}
    for members in contents.values():
        write_tar(tmp_path / "train.tar", *members)
        with pytest.raises(UserError, match=r"train.tar has no images in class folders"):
            Folder(root=str(tmp_path), classes=["n9"]).setup("fit")
    for content in (b"not a tar", b""):
        (tmp_path / "train.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"train.tar cannot be read as a tar file: "):
            Folder(root=str(tmp_path)).setup("fit")


def test_tars_of_other_classes_are_refused(tree, tmp_path):
    tar_of_class_folders(tree, tmp_path)
    with pytest.raises(UserError, match=r"has 2 folders that are not classes \(n10, n9\)"):
        ImageNet(root=str(tmp_path)).setup("fit")


def test_unreadable_images_are_named(tree, tmp_path):
    (tree / "val" / "n9" / "a.png").write_bytes(b"not an image")
    tar_of_class_folders(tree, tmp_path)
    data = open_test(Folder(root=str(tmp_path)).test_dataset())
    with pytest.raises(UnreadableImage, match=r"val.tar: n9/a.png cannot be read"):
        data.images[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unchanged_tars_are_hashed_once(layout, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout(tree, tmp_path)
    before = open_test(Folder(root=str(tmp_path)).test_dataset()).images.fingerprints()
    assert before[0].split("\0")[2] != before[1].split("\0")[2]

    def fail(self, index):
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(TarLoader, "fingerprint", fail)
        assert open_test(Folder(root=str(tmp_path)).test_dataset()).images.fingerprints() == before
    Image.new("RGB", (8, 8), (81, 0, 0)).save(tree / "val" / "n9" / "a.png")
    for path in (tmp_path / "train", tmp_path / "val"):
        shutil.rmtree(path, ignore_errors=True)
    layout(tree, tmp_path)
    after = open_test(Folder(root=str(tmp_path)).test_dataset()).images.fingerprints()
    assert after[0] == before[0]
    assert after[1] != before[1]
