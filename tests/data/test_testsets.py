"""Each shift data set on a tree of real images, laid out as it is published, against the usual mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from nsaug.data import (
    CIFAR10C,
    DAmageNet,
    ImageNetA,
    ImageNetC,
    ImageNetR,
    ImageNetReaL,
    ImageNetSketch,
    ImageNetV2,
    MissingData,
    ObjectNet,
    StylizedImageNet,
    UnreadableImage,
)
from nsaug.data.sources.imagenet import wnids
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.utils.errors import UserError
from tests.conftest import place

CONFIG = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "center",
          "mean": (0.5, 0.5, 0.5)}  # fmt: skip
INFO = ImageNetInfo("imagenet-1k")


def found(data):
    data.setup("test")
    data.configure_for(CONFIG)
    return data


def shows(data, sample) -> None:
    """Every image is of the class that it is labelled with: held against the sample's own file of that class."""
    images = data.test_images
    assert len(images)
    for index in range(len(images)):
        pixels, label, name = images[index]
        with Image.open(data.root / name) as stored, Image.open(sample[label]) as original:
            np.testing.assert_array_equal(np.array(stored.convert("RGB")), np.array(original.convert("RGB")))
        assert pixels.shape == (3, 224, 224)
        assert 0 <= pixels.min() < pixels.max() <= 1


def test_the_sample_is_one_image_of_each_class(sample):
    assert sorted(sample) == list(range(1000))


@pytest.mark.parametrize(("kind", "name"), [(ImageNetA, "imagenet_a"), (ImageNetR, "imagenet_r")])
def test_a_and_r_keep_imagenets_indices_and_answer_among_their_200(sample, tmp_path, kind, name):
    """Numbering the folders would give 0 to 199."""
    class_subset = class_subset_indices(name)
    assert len(set(class_subset)) == 200
    for label in class_subset:
        place(sample[label], tmp_path / wnids()[label] / "0.123_junco.jpg")
    (tmp_path / "README.txt").write_text("read me")
    data = found(kind(root=str(tmp_path)))
    assert list(data.class_subset) == class_subset
    assert sorted(data.test_images.labels) == class_subset != list(range(200))
    assert data.num_classes == 1000
    shows(data, sample)
    assert data.notes == [f"200 of {kind.images_expected:,} images are there"]


def test_the_200_classes_are_those_that_were_published():
    """Stingray to acorn, and goldfish to acorn: the first and last folders of the two archives."""
    a, r = ([wnids()[label] for label in class_subset_indices(name)] for name in ("imagenet_a", "imagenet_r"))
    assert (a[0], a[-1]) == ("n01498041", "n12267677")
    assert (r[0], r[-1]) == ("n01443537", "n12267677")


def test_a_half_copied_set_is_counted(sample, tmp_path, caplog):
    for label in class_subset_indices("imagenet_a")[:150]:
        place(sample[label], *(tmp_path / wnids()[label] / f"{copy}.jpg" for copy in range(2)))
    (tmp_path / wnids()[class_subset_indices("imagenet_a")[150]]).mkdir()
    data = found(ImageNetA(root=str(tmp_path)))
    classes, images = data.notes
    assert classes.startswith("50 of 200 classes have no images (n0")
    assert images == "300 of 7,500 images are there"
    assert "ImageNetA: 50 of 200 classes have no images" in caplog.text


def test_a_folder_that_is_no_class_of_the_set_is_refused(sample, tmp_path):
    a = class_subset_indices("imagenet_a")
    other = next(label for label in range(1000) if label not in a)
    for label in (a[0], other):
        place(sample[label], tmp_path / wnids()[label] / "x.jpg")
    with pytest.raises(UserError, match=f"1 folders that are no class, {wnids()[other]}") as error:
        ImageNetA(root=str(tmp_path)).setup("test")
    assert not isinstance(error.value, MissingData)


@pytest.mark.parametrize("below", ["", "imagenetv2-{}-format-val"])
@pytest.mark.parametrize("variant", ["matched-frequency", "threshold0.7", "top-images"])
def test_v2_labels_are_the_folders_numbers(sample, tmp_path, variant, below):
    """Sorted as strings, only 12 of 1,000 folders would keep their index."""
    labels = [0, 1, 2, 9, 10, 11, 99, 100, 101, 999, *range(500, 520)]
    for label in labels:
        place(sample[label], tmp_path / below.format(variant) / str(label) / "0a1b.jpeg")
    data = found(ImageNetV2(root=str(tmp_path), variant=variant))
    assert sorted(data.test_images.labels) == sorted(labels)
    shows(data, sample)
    assert data.title == f"ImageNet-V2 ({variant})"
    assert data.notes[0].startswith("970 of 1,000 classes have no images")


def test_v2_is_never_another_variant(sample, tmp_path):
    for root in (tmp_path / "all", tmp_path / "imagenetv2-top-images-format-val"):
        inner = root / "imagenetv2-top-images-format-val" if root.name == "all" else root
        for label in range(3):
            place(sample[label], inner / str(label) / "x.jpeg")
        with pytest.raises(MissingData, match=r"ImageNet-V2 \(threshold0.7\): no images in folders such as 0"):
            ImageNetV2(root=str(root), variant="threshold0.7").setup("test")
        assert len(found(ImageNetV2(root=str(root), variant="top-images")).test_images) == 3
    place(sample[5], tmp_path / "wnids" / wnids()[5] / "x.jpeg")
    with pytest.raises(MissingData, match="no images in folders such as 0"):
        ImageNetV2(root=str(tmp_path / "wnids")).setup("test")


@pytest.mark.parametrize(("kind", "below"), [(ImageNetSketch, "sketch"), (ImageNetSketch, ""),
                                             (StylizedImageNet, "val"), (StylizedImageNet, "")])  # fmt: skip
def test_sketch_and_stylized_go_by_wnid(sample, tmp_path, kind, below):
    for label in range(3, 1000, 41):
        place(sample[label], tmp_path / below / wnids()[label] / "sketch_1.JPEG")
    shows(found(kind(root=str(tmp_path))), sample)


def test_stylized_is_never_its_training_images(sample, tmp_path):
    place(sample[0], tmp_path / "train" / wnids()[0] / "x.JPEG")
    with pytest.raises(MissingData, match="no images in folders such as n01440764 in"):
        StylizedImageNet(root=str(tmp_path)).setup("test")


def validation_images(sample, root, numbers):
    """ImageNet's val/WNID/ILSVRC2012_val_N.JPEG with made-up numbers by class index."""
    for label, number in numbers.items():
        place(sample[label], root / "val" / wnids()[label] / f"ILSVRC2012_val_{number:08d}.JPEG")


def test_real_labels_are_sets_by_the_images_number(sample, tmp_path):
    """The first five of the published file: [], [970, 795], [230, 231], [809], [516, 850]."""
    validation_images(sample, tmp_path, {65: 1, 795: 2, 230: 3, 809: 4, 516: 5})
    data = found(ImageNetReaL(root=str(tmp_path)))
    labels = {
        Path(name).stem[-1]: label for name, label in zip(data.test_images.ids, data.test_images.labels, strict=True)
    }
    assert {key: set(label) for key, label in labels.items()} == {
        "2": {970, 795}, "3": {230, 231}, "4": {809}, "5": {516, 850},
    }  # fmt: skip
    _, labels, _ = next(iter(data.readable_loader(data.test_images)))
    assert labels.shape == (4, 2)
    assert sorted(labels[labels >= 0].tolist()) == [230, 231, 516, 795, 809, 850, 970]
    assert "4 of 46,837 images are there" in data.notes


def test_real_says_so_where_names_are_not_imagenets(sample):
    root = next(iter(sample.values())).parents[2]
    with pytest.raises(MissingData, match=r"ReaL: its labels go by names such as ILSVRC2012_val_00000001.JPEG, and"):
        ImageNetReaL(root=str(root)).setup("test")


def damagenet(sample, tmp_path):
    numbers = {label: 49_999 - 3 * label for label in range(0, 1000, 67)}
    validation_images(sample, tmp_path / "imagenet", numbers)
    for label, number in numbers.items():
        place(sample[label], tmp_path / "DAmageNet" / f"ILSVRC2012_val_{number:08d}.png", size=224)
    return numbers


def test_damagenet_joins_on_names_and_is_not_resized(sample, tmp_path):
    """Its order is neither that of the classes nor of the labels; the extension differs."""
    numbers = damagenet(sample, tmp_path)
    data = found(DAmageNet(root=str(tmp_path / "DAmageNet"), labels=str(tmp_path / "imagenet")))
    assert len(data.test_images) == len(numbers)
    for index in range(len(numbers)):
        pixels, label, name = data.test_images[index]
        assert name == f"ILSVRC2012_val_{numbers[label]:08d}.png"
        with Image.open(data.root / name) as stored:
            expected = torch.tensor(np.array(stored)).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, expected)
    assert not any("resized" in remark for remark in data.notes)
    data.configure_for(CONFIG | {"input_size": (3, 384, 384)})
    assert data.test_images[0][0].shape == (3, 384, 384)
    assert "resized from 224 to 384 px" in data.notes


def test_damagenet_with_a_list_of_labels(sample, tmp_path):
    numbers = damagenet(sample, tmp_path)
    listed = dict(list(numbers.items())[2:])
    labels = tmp_path / "val.txt"
    labels.write_text("".join(f"ILSVRC2012_val_{number:08d}.JPEG {label}\n" for label, number in listed.items()))
    data = found(DAmageNet(root=str(tmp_path / "DAmageNet"), labels=str(labels)))
    assert sorted(data.test_images.labels) == sorted(listed)
    assert f"2 images have no label in {labels}" in data.notes
    labels.write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    with pytest.raises(UserError, match="each line has to be a file name and a class index"):
        DAmageNet(root=str(tmp_path / "DAmageNet"), labels=str(labels)).setup("test")
    with pytest.raises(MissingData, match=r"its labels are those of ImageNet's val/WNID/"):
        DAmageNet(root=str(tmp_path / "DAmageNet"), labels=str(tmp_path / "nowhere")).setup("test")


def objectnet(sample, root, shift=0):
    """Four classes: one is two of ImageNet's, one is none, one is half copied. Mappings as in the archive."""
    lines = [INFO.index_to_description(label) for label in range(1000)]
    order = np.random.default_rng(0).permutation(1000)  # ImageNet 2012's own order is not torch's
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    (mappings / "imagenet_to_label_2012_v2").write_text("".join(f"{lines[label]}\n" for label in order))
    to_line = {str(label): int(line) + shift for line, label in enumerate(order)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(to_line))
    names = {"alarm_clock": "Alarm clock", "banana": "Banana", "briefcase": "Briefcase", "tie": "Tie"}
    shared = {
        "Alarm clock": f"{lines[409]}; {lines[530]}",
        "Banana": lines[954],
        "Tie": f"{lines[457]}; {lines[906]}",
    }
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(names))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    for folder, labels in {"alarm_clock": [409, 530], "banana": [954], "briefcase": [414]}.items():
        for label in labels:
            with Image.open(sample[label]) as image:
                framed = image.convert("RGB").resize((300, 260))
            framed.paste((255, 0, 0), (0, 0, 300, 1))
            framed.paste((255, 0, 0), (0, 259, 300, 260))
            framed.paste((255, 0, 0), (0, 0, 1, 260))
            framed.paste((255, 0, 0), (299, 0, 300, 260))
            (root / "images" / folder).mkdir(parents=True, exist_ok=True)
            framed.save(root / "images" / folder / f"{label}.png")


def test_objectnet_goes_by_its_own_mappings(sample, tmp_path):
    objectnet(sample, tmp_path)
    data = found(ObjectNet(root=str(tmp_path)))
    labels = dict(zip(data.test_images.ids, data.test_images.labels, strict=True))
    assert labels == {
        "images/alarm_clock/409.png": (409, 530),
        "images/alarm_clock/530.png": (409, 530),
        "images/banana/954.png": (954,),
    }  # fmt: skip
    assert data.class_subset == [409, 457, 530, 906, 954]
    assert data.notes[0] == f"2 of 5 classes have no images ({wnids()[457]}, {wnids()[906]})"


def test_objectnets_red_border_is_cut_off(sample, tmp_path):
    objectnet(sample, tmp_path)
    data = ObjectNet(root=str(tmp_path))
    data.setup("test")
    for index in range(3):
        image = np.array(data.test_images.load(index))
        assert image.shape == (256, 296, 3)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert not (edge == (255, 0, 0)).all(-1).any()


def test_mappings_that_are_off_by_a_line_are_refused(sample, tmp_path):
    objectnet(sample, tmp_path, shift=1)
    with pytest.raises(UserError, match="unpack the published archive again"):
        ObjectNet(root=str(tmp_path)).setup("test")
    (tmp_path / "mappings" / "pytorch_to_imagenet_2012_id.json").unlink()
    with pytest.raises(MissingData, match=r"ObjectNet: there is no file .*; it is published at https://objectnet.dev"):
        ObjectNet(root=str(tmp_path)).setup("test")


def imagenet_c(sample, root, labels, corruption="fog", group=""):
    """Images that tell their severity by their size in grey levels: severity 3 is darker than 2."""
    for label in labels:
        for severity in range(1, 6):
            path = root / group / corruption / str(severity) / wnids()[label] / f"ILSVRC2012_val_{label:08d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(sample[label]) as image:
                image.convert("RGB").resize((224, 224)).point(lambda v, s=severity: v // s).save(path, quality=95)


@pytest.mark.parametrize("group", ["", "weather"])
def test_imagenet_c_is_read_as_it_is(sample, tmp_path, group):
    labels = [3, 500, 999]
    imagenet_c(sample, tmp_path, labels, group=group)
    data = found(ImageNetC(root=str(tmp_path), corruption="fog", severities=(5, 1, 3)))
    images = data.test_images
    assert images.labels == labels
    for index, label in enumerate(labels):
        pixels, told, name = images[index]
        assert told == label
        assert name == f"{wnids()[label]}/ILSVRC2012_val_{label:08d}.JPEG"
        for at, severity in enumerate((5, 1, 3)):
            with Image.open(tmp_path / group / "fog" / str(severity) / name) as stored:
                torch.testing.assert_close(pixels[at], torch.tensor(np.array(stored)).permute(2, 0, 1) / 255)
    assert data.notes == ["stored", "997 of 1,000 classes have no images (n01440764, n01443537, n01484850, ...)",
                            "3 of 50,000 images are there"]  # fmt: skip
    data.configure_for(CONFIG | {"input_size": (3, 96, 96)})
    assert data.test_images[0][0].shape == (3, 3, 96, 96)
    assert data.notes[-1] == "resized from 224 to 96 px"


def test_imagenet_c_judges_the_same_images_at_all_severities(sample, tmp_path):
    imagenet_c(sample, tmp_path, [3, 500])
    (tmp_path / "fog" / "4" / wnids()[500] / "ILSVRC2012_val_00000500.JPEG").unlink()
    assert found(ImageNetC(root=str(tmp_path), corruption="fog")).test_images.labels == [3]
    assert len(found(ImageNetC(root=str(tmp_path), corruption="fog", severities=(1, 2))).test_images) == 2
    shutil.rmtree(tmp_path / "fog" / "5")
    with pytest.raises(MissingData, match=r"ImageNet-C: there is no folder .*fog/5; it is published at https://zenodo"):
        ImageNetC(root=str(tmp_path), corruption="fog").setup("test")
    with pytest.raises(MissingData, match=r"ImageNet-C: there is no folder .*snow"):
        ImageNetC(root=str(tmp_path), corruption="snow").setup("test")


def test_stored_images_that_were_changed_are_refused(sample, tmp_path):
    imagenet_c(sample, tmp_path, [3])
    for path in tmp_path.rglob("*.JPEG"):
        with Image.open(path) as image:
            image.resize((256, 256)).save(path)
    data = found(ImageNetC(root=str(tmp_path), corruption="fog"))
    with pytest.raises(UserError, match="stored at 224 x 224 px, this copy holds one of 256 x 256"):
        data.test_images[0]


def cifar10_c(root, n=20):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8)
    labels = np.tile(rng.integers(0, 10, n), 5)
    np.save(root / "frost.npy", images)
    np.save(root / "labels.npy", labels)
    return images, labels


def test_cifar10_c_is_read_as_it_is(tmp_path):
    images, labels = cifar10_c(tmp_path)
    data = CIFAR10C(root=str(tmp_path), corruption="frost", severities=(2, 5))
    data.setup("test")
    data.configure_for(CONFIG | {"input_size": (3, 32, 32)})
    assert data.test_images.labels == labels[:20].tolist()
    assert data.class_names[3] == "cat"
    for index in (0, 7, 19):
        expected = torch.tensor(images[[20 + index, 80 + index]]).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(data.test_images[index][0], expected)
    assert data.notes == ["stored", "20 of 10,000 images are there"]
    data.configure_for(CONFIG)
    assert data.test_images[0][0].shape == (2, 3, 224, 224)
    assert data.notes[-1] == "resized from 32 to 224 px"


def test_cifar10_c_that_is_damaged(tmp_path):
    images, labels = cifar10_c(tmp_path)
    np.save(tmp_path / "labels.npy", np.sort(labels))
    with pytest.raises(UserError, match="the severities' labels differ"):
        CIFAR10C(root=str(tmp_path), corruption="frost").setup("test")
    np.save(tmp_path / "fog.npy", images.transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match=r"holds \(100, 3, 32, 32\) in uint8"):
        CIFAR10C(root=str(tmp_path), corruption="fog").setup("test")
    whole = (tmp_path / "frost.npy").read_bytes()
    (tmp_path / "frost.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MissingData, match=r"frost.npy is cut off or damaged \(153,"):
        CIFAR10C(root=str(tmp_path), corruption="frost").setup("test")
    with pytest.raises(MissingData, match=r"CIFAR-10-C: there is no file .*snow.npy; it is published at"):
        CIFAR10C(root=str(tmp_path), corruption="snow").setup("test")


KINDS = [
    (ImageNetA, {}), (ImageNetR, {}), (ImageNetV2, {}), (ImageNetSketch, {}), (StylizedImageNet, {}),
    (ImageNetReaL, {}), (DAmageNet, {"labels": "nowhere"}), (ObjectNet, {}), (ImageNetC, {"corruption": "fog"}),
    (CIFAR10C, {"corruption": "fog"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_missing_set_names_the_path_and_where_it_is_published(tmp_path, kind, options):
    data = kind(root=str(tmp_path / "none"), **options)
    with pytest.raises(MissingData) as error:
        data.setup("test")
    assert str(error.value) == f"{data.title}: there is no folder {tmp_path}/none; it is published at {kind.homepage}"
    assert kind.homepage.startswith("https://")
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingData, match="it is published at"):  # an empty folder is no data set either
        data.setup("test")
    with pytest.raises(UserError, match="has no training images"):
        data.setup("fit")


def test_images_that_cannot_be_read_are_left_out(sample, tmp_path):
    for label in (3, 500, 999):
        place(sample[label], tmp_path / wnids()[label] / "x.jpg")
    broken = tmp_path / wnids()[500] / "x.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    place(sample[7], tmp_path / wnids()[7] / "x.jpg")
    (tmp_path / wnids()[7] / "x.jpg").write_bytes(b"")
    data = found(ImageNetSketch(root=str(tmp_path), batch_size=2, num_workers=0))
    with pytest.raises(UnreadableImage, match=f"{wnids()[500]}/x.jpg cannot be read"):
        data.test_images[data.test_images.labels.index(500)]
    batches = list(data.readable_loader(data.test_images))
    assert [labels.tolist() for _, labels, _ in batches] == [[3], [999]]
    place(sample[3], tmp_path / wnids()[3] / "x.jpg")
    (tmp_path / wnids()[3] / "x.jpg").write_bytes(b"no image")
    assert next(iter(data.readable_loader(data.test_images))) is None
