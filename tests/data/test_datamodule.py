"""All sources: where their images and labels come from, and how the splits are cut."""

import random
import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from nsaug.data import CIFAR10, Digits, Folder, ImageNet, SeededDataset
from nsaug.data.sources.cifar10 import CLASSES
from nsaug.utils.errors import UserError
from tests.conftest import SHARED

CONFIG = {
    "input_size": (3, 8, 8),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
}


def tree(root, folders, images=4, size=(10, 12)):
    """Class folders of images whose red channel is the folder's place and green the image's."""
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", size, (place, number, 0)).save(root / folder / f"{number}.png")


def test_digits_has_three_splits_that_share_no_image():
    data = Digits()
    data.setup()
    ids = [set(images.ids) for images in (data.train_set, data.val_set, data.test_set)]
    assert [len(split) for split in ids] == [1294, 144, 359]
    assert len(set.union(*ids)) == 1797
    assert data.num_classes == 10


def test_digits_are_the_digits():
    from sklearn.datasets import load_digits

    data, source = Digits(crop="none", hflip=0), load_digits()
    data.setup()
    data.configure_for(CONFIG)
    for index in (0, 100, 358):
        image, label, name = data.test_set[index]
        original = int(name.removeprefix("digits/"))
        assert label == source.target[original]
        torch.testing.assert_close(image[1], torch.tensor(source.images[original] / 16).float(), atol=1 / 255, rtol=0)


def test_the_validation_split_is_the_same_for_every_seed():
    torch.manual_seed(1)
    np.random.seed(1)
    first = Digits()
    first.setup("fit")
    torch.manual_seed(2)
    np.random.seed(2)
    second = Digits()
    second.setup("fit")
    assert first.val_set.ids == second.val_set.ids


@pytest.mark.parametrize("val_fraction", [1.0, 0.0001])
def test_a_holdout_that_leaves_nothing_is_refused(val_fraction):
    with pytest.raises(UserError, match=r"data.val_fraction=.* leaves"):
        Digits(val_fraction=val_fraction).setup("fit")


def test_without_a_holdout_there_is_no_validation():
    data = Digits(val_fraction=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.train_set) == 1438


def test_folder_labels_by_sorted_name(tmp_path):
    tree(tmp_path / "train", ["b", "a", "c"])
    tree(tmp_path / "val", ["c", "a"])
    data = Folder(root=str(tmp_path), val_fraction=0.25)
    data.setup()
    assert data.class_names == ["a", "b", "c"]
    assert sorted(set(data.test_set.labels)) == [0, 2], "a class that is missing renumbers no other"
    assert data.test_set.ids[0] == "val/a/0.png"


def test_folder_labels_by_a_given_list(tmp_path):
    tree(tmp_path / "train", ["a", "b"])
    (tmp_path / "classes.txt").write_text("b\nz\na\n")
    for classes in (["b", "z", "a"], str(tmp_path / "classes.txt")):
        data = Folder(root=str(tmp_path), classes=classes)
        data.setup("fit")
        labels = {
            name.split("/")[1]: label for name, label in zip(data.train_set.ids, data.train_set.labels, strict=True)
        }
        assert labels == {"a": 2, "b": 0}
        assert data.num_classes == 3


def test_images_are_found_at_any_depth_and_belong_to_their_id(tmp_path):
    tree(tmp_path / "train" / "a", ["deep", "deeper"])
    tree(tmp_path / "train", ["b"])
    data = Folder(root=str(tmp_path), val_fraction=0.25, crop="none", hflip=0)
    data.setup("fit")
    data.configure_for(CONFIG)
    for images in (data.train_set, data.val_set):
        for index in range(len(images)):
            image, label, name = images[index]
            stored = Image.open(tmp_path / name).getpixel((0, 0))
            torch.testing.assert_close(image[:, 4, 4] * 255, torch.tensor(stored).float())
            assert label == (0 if name.startswith("train/a/") else 1)


def test_unreadable_layouts_are_refused_in_one_line(tmp_path):
    tree(tmp_path / "full" / "train", ["a", "b"])
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    (tmp_path / "flat" / "train").mkdir(parents=True)
    cases = {
        "missing": ({}, "fit", "does not exist: type data.root=PATH"),
        "full": ({}, "test", "has no val/ folder: type data.root=PATH"),
        "empty": ({}, "fit", "class folders without images"),
        "flat": ({}, "fit", "holds no class folders"),
    }
    for root, (options, stage, says) in cases.items():
        with pytest.raises(UserError, match=re.escape(says)) as error:
            Folder(root=str(tmp_path / root), **options).setup(stage)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"1 folders that are no class, a: expected names such as b, c"):
        Folder(root=str(tmp_path / "full"), classes=["b", "c"]).setup("fit")
    with pytest.raises(UserError, match=r"data.classes=.* does not exist"):
        Folder(root=str(tmp_path / "full"), classes=str(tmp_path / "no.txt"))


def test_imagenet_keeps_its_indices(imagenet):
    """12 classes, none of them in its place among the 12: numbering the folders would give 0 to 11."""
    data = ImageNet(root=str(imagenet), val_fraction=0.25)
    data.setup()
    info = timm.data.ImageNetInfo()
    for images in (data.train_set, data.val_set, data.test_set):
        for name, label in zip(images.ids, images.labels, strict=True):
            wnid, file = name.split("/")[1:]
            assert info.index_to_label_name(label) == wnid
            described = file.split("_", 2)[2].removesuffix(".JPEG").replace("_", " ").lower()
            assert described in info.index_to_description(label).lower().replace("_", " ")
    assert data.num_classes == 1000
    assert min(data.test_set.labels) >= 500


def test_imagenet_images_are_prepared_as_timm_would(imagenet):
    config = timm.data.resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg("deit_small_patch16_224").to_dict()
    )
    expected = timm.data.create_transform(**config)
    data = ImageNet(root=str(imagenet))
    data.setup("test")
    data.configure_for(config)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    for index in (0, 13):
        image, _, name = data.test_set[index]
        with Image.open(imagenet / name) as file:
            torch.testing.assert_close((image - mean) / std, expected(file.convert("RGB")), atol=1e-6, rtol=0)


def test_training_images_are_cropped_and_flipped_at_random(imagenet):
    data = ImageNet(root=str(imagenet), val_fraction=0)
    data.setup("fit")
    data.configure_for({**CONFIG, "input_size": (3, 64, 64)})
    torch.manual_seed(0)
    crops = torch.stack([data.train_set[0][0] for _ in range(4)])
    assert crops.shape == (4, 3, 64, 64)
    assert 0 <= crops.min() < crops.max() <= 1
    assert all((crops[0] - crop).abs().mean() > 0.01 for crop in crops[1:])


def test_unknown_folders_in_imagenet_are_refused(tmp_path):
    tree(tmp_path / "val", ["n01440764", "n00000001"])
    with pytest.raises(UserError, match=r"1 folders that are no class, n00000001"):
        ImageNet(root=str(tmp_path)).setup("test")


def test_cifar10_from_folders(tmp_path):
    tree(tmp_path / "train", CLASSES, size=(32, 32))
    data = CIFAR10(root=str(tmp_path))
    data.setup("fit")
    data.configure_for({**CONFIG, "input_size": (3, 32, 32)})
    image, label, name = data.train_set[7]
    assert CLASSES[label] == name.split("/")[1]
    assert image.shape == (3, 32, 32)


def test_cifar10_as_torchvision_keeps_it(tmp_path, monkeypatch):
    class Stored:
        def __init__(self, root, train, download):
            self.data = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
            self.targets = [index % 10 for index in range(20)]

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    data = CIFAR10(root=str(tmp_path))
    data.setup("test")
    data.configure_for({**CONFIG, "input_size": (3, 32, 32)})
    image, label, name = data.test_set[13]
    assert (label, name) == (3, "test/00013")
    torch.testing.assert_close(image, torch.full((3, 32, 32), 13 / 255))


def test_cifar10_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match=r"data.download=true fetches it, data.root=PATH names it"):
        CIFAR10(root=str(tmp_path)).setup("fit")


@pytest.mark.skipif(not (SHARED / "cifar10.tar.xz").is_file(), reason=f"no real CIFAR-10 at {SHARED}")
def test_real_cifar10_images(tmp_path):
    import tarfile

    with tarfile.open(SHARED / "cifar10.tar.xz") as tar:  # its first few hundred files: unpacking all takes long
        for number, member in enumerate(tar):
            if member.isfile():
                tar.extract(member, tmp_path, filter="data")
            if number > 300:
                break
    root = tmp_path / "cifar10"
    split = "train" if (root / "train").is_dir() else "val"
    data = CIFAR10(root=str(root), test=split)
    data.setup("test")
    data.configure_for({**CONFIG, "input_size": (3, 32, 32)})
    image, label, name = data.test_set[0]
    assert CLASSES[label] == name.split("/")[1]
    with Image.open(root / name) as file:
        stored = torch.tensor(np.array(file)).permute(2, 0, 1) / 255
    torch.testing.assert_close(image, stored)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"])
def test_policies_of_timm_change_training_images_alone(policy):
    data = Digits(auto_augment=policy, crop="none", hflip=0)
    data.setup("fit")
    data.configure_for(CONFIG)
    plain = data.val_set.subset(range(len(data.val_set)))
    L.seed_everything(0, verbose=False)
    seen = [data.train_set[7][0] for _ in range(20)]
    assert len({image.numpy().tobytes() for image in seen}) > 5
    assert all(image.shape == (3, 8, 8) and 0 <= image.min() <= image.max() <= 1 for image in seen)
    assert torch.equal(data.val_set[3][0], plain[3][0])


def test_a_policy_takes_every_strength():
    """timm asks Pillow for 0 bits at the greatest: a version that refuses would end a run at a random step."""
    data = Digits(auto_augment="rand-m10-n8-inc1")
    data.setup("fit")
    data.configure_for(CONFIG)
    for index in range(200):
        data.train_set[index]


def test_an_unknown_policy_is_one_line():
    data = Digits(auto_augment="rand-x9")
    data.setup("fit")
    with pytest.raises(UserError, match="data.auto_augment=rand-x9 is no policy that timm knows"):
        data.configure_for(CONFIG)


def test_views_are_independent_augmentations_of_one_image():
    data = Digits(crop="padded", hflip=0, batch_size=4)
    data.views = 2
    data.setup("fit")
    data.configure_for(CONFIG)
    images, labels, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 2, 3, 8, 8)
    assert labels.shape == (4,)
    views = [data.train_set[5][0] for _ in range(20)]
    assert any(not torch.equal(a, b) for a, b in views)
    shifts = {image.numpy().tobytes() for pair in views for image in pair}
    assert 5 < len(shifts) <= 9, "shifts by at most a pixel"
    assert data.val_set[0][0].shape == (3, 8, 8)


def keys_of(data):
    """What a data set's training loader asks for, batch by batch."""
    return [list(batch) for batch in data.train_dataloader().batch_sampler]


def at(data, epoch=0, done=0, ranks=1, rank=0):
    """The data as a trainer would have them there."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, current_epoch=epoch, fit_loop=loop)
    return data


def test_the_order_of_training_images_is_a_function_of_seed_and_epoch():
    data = Digits(batch_size=64)
    data.setup("fit")
    data.configure_for(CONFIG)
    first = keys_of(at(data))
    L.seed_everything(5, verbose=False)
    assert keys_of(at(data)) == first
    assert len(first) == 20
    assert all(len(batch) == 64 for batch in first)
    seen = [position for batch in first for _, position in batch]
    assert len(set(seen)) == len(seen)
    assert seen != sorted(seen)
    assert [position for batch in keys_of(at(data, epoch=1)) for _, position in batch] != seen
    assert keys_of(at(data, done=7)) == first[7:], "a run that goes on begins where it was"
    assert keys_of(at(data, done=20)) == first, "and after a whole epoch at the next one's start"
    data.seed = 1
    assert keys_of(at(data)) != first


@pytest.mark.parametrize(("ranks", "size"), [(2, 64), (3, 50), (3, 2000)])
def test_ranks_share_the_training_images(ranks, size):
    data = Digits(batch_size=size)
    data.setup("fit")
    data.configure_for(CONFIG)
    each = [keys_of(at(data, epoch=2, ranks=ranks, rank=rank)) for rank in range(ranks)]
    assert len({tuple(map(len, batches)) for batches in each}) == 1, "as many batches, of as many images, on all"
    seen = [key for batches in each for batch in batches for key in batch]
    assert len(seen) - len(set(seen)) < ranks, "none twice, but to fill up the last batch"
    assert len(set(seen)) > len(data.train_set) - ranks * size
    assert {epoch for epoch, _ in seen} == {2}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_augmentation_is_a_function_of_where_it_is_asked_for(workers):
    data = Digits(batch_size=32, crop="padded", hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", num_workers=workers)
    data.setup("fit")
    data.configure_for(CONFIG)
    lost = torch.zeros(len(data.train_set), dtype=torch.bool)
    images = SeededDataset(data.train_set, 0, lost)
    L.seed_everything(4, verbose=False)
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    views = torch.stack([images[epoch, 7][0] for epoch in range(12)])
    assert len({view.numpy().tobytes() for view in views}) > 6
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1][1]).all()
    assert random.getstate() == state[2]
    L.seed_everything(9, verbose=False)
    assert torch.equal(images[3, 7][0], views[3])
    assert not torch.equal(images[3, 1, 7][0], views[3])
    assert not torch.equal(
        torch.stack([SeededDataset(data.train_set, 1, lost)[epoch, 7][0] for epoch in range(12)]), views
    )
    pixels, _, ids = next(iter(at(data, epoch=3).train_dataloader()))
    position = data.train_set.ids.index(ids[0])
    assert torch.equal(pixels[0], images[3, position][0])
