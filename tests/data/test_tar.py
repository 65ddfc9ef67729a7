import io
import shutil
import tarfile

import pytest
import torch
from PIL import Image

from nsaug.data import Folder, ImageNet
from nsaug.data.dataset import UnreadableImage
from nsaug.models.factory import build_vit
from nsaug.utils.errors import UserError

SPLITS = ("train", "val")


def one_tar(tree, root):
    """train.tar, with class folders in it."""
    for split in SPLITS:
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for folder in sorted((tree / split).iterdir(), reverse=True):
                tar.add(folder, f"./{folder.name}")


def tar_of_tars(tree, root):
    """As ImageNet's training images are distributed."""
    for split in SPLITS:
        with tarfile.open(root / f"{split}.tar", "w") as whole:
            for folder in sorted((tree / split).iterdir(), reverse=True):
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as tar:
                    for path in folder.iterdir():
                        tar.add(path, path.name)
                told = tarfile.TarInfo(f"{folder.name}.tar")
                told.size = inner.tell()
                inner.seek(0)
                whole.addfile(told, inner)


def folder_of_tars(tree, root):
    for split in SPLITS:
        (root / split).mkdir()
        for folder in (tree / split).iterdir():
            with tarfile.open(root / split / f"{folder.name}.tar", "w") as tar:
                for path in folder.iterdir():
                    tar.add(path, path.name)


LAYOUTS = [one_tar, tar_of_tars, folder_of_tars]


def opened(data):
    data.setup()
    data.configure_for(build_vit("vit_tiny_patch16_224", num_classes=2, img_size=32).data_config)
    return data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_in_tars_are_those_of_the_folders(layout, imagenet, tmp_path):
    """Ids, order, labels by wnid and not by the place in the tar, pixels; with loading processes, too."""
    layout(imagenet, tmp_path)
    folders, tars = (
        opened(ImageNet(root=str(root), num_workers=2, val_fraction=0.25)) for root in (imagenet, tmp_path)
    )
    for split in ("train_set", "val_set", "test_set"):
        ours, theirs = getattr(tars, split), getattr(folders, split)
        assert ours.ids == theirs.ids
        assert ours.labels == theirs.labels
    tars.test_images[0]  # opened here before processes are forked that read it, too
    for ours, theirs in zip(tars.test_dataloader(), folders.test_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert tars.test_images.digest() == tars.test_images.digest() != folders.test_images.digest()


@pytest.fixture
def tree(tmp_path):
    for split in SPLITS:
        for place, name in enumerate(("n10", "n9")):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (80 * place, 0, 0)).save(folder / "a.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_are_sorted_as_folders_are(layout, tree, tmp_path):
    layout(tree, tmp_path)
    data = opened(Folder(root=str(tmp_path), val_fraction=0))
    assert data.class_names == ["n10", "n9"], "as strings: timm's reader would sort them as numbers"
    assert data.test_images.ids == ["val/n10/a.png", "val/n9/a.png"]
    assert data.test_images.labels == [0, 1]
    assert [round(255 * float(data.test_images[at][0][0, 0, 0])) for at in range(2)] == [0, 80]


def test_a_name_that_two_images_have_is_not_enough(tree, tmp_path):
    shutil.copytree(tree / "val" / "n9", tree / "val" / "part" / "n9")
    one_tar(tree, tmp_path)
    data = opened(Folder(root=str(tmp_path), val_fraction=0, classes=["n10", "n9"]))
    assert len(set(data.test_images.ids)) == 3


def test_a_tar_without_class_folders_is_refused(tree, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tree / "train" / "n9" / "a.png", "a.png")
    with pytest.raises(UserError, match=r"train.tar holds .*no class"):
        Folder(root=str(tmp_path), classes=["n9"]).setup("fit")
    (tmp_path / "train.tar").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train.tar holds no images in class folders"):
        Folder(root=str(tmp_path)).setup("fit")


def test_a_tar_with_other_classes_is_refused(tree, tmp_path):
    one_tar(tree, tmp_path)
    with pytest.raises(UserError, match="holds 2 folders that are no class, n10, n9"):
        ImageNet(root=str(tmp_path)).setup("fit")


def test_an_image_that_cannot_be_read_is_named(tree, tmp_path):
    (tree / "val" / "n9" / "a.png").write_bytes(b"no image")
    one_tar(tree, tmp_path)
    data = opened(Folder(root=str(tmp_path), val_fraction=0))
    with pytest.raises(UnreadableImage, match=r"val.tar: \./n9/a.png cannot be read"):
        data.test_images[1]
