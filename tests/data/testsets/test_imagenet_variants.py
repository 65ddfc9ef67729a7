"""Trees of real images, laid out as they are published."""

import pytest

from nsaug.data import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, MissingData, StylizedImageNet
from nsaug.data.names import wnids
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.utils.errors import UserError
from tests.conftest import place
from tests.data.helpers import open_test
from tests.data.testsets.helpers import CONFIG, check_labels


def test_sample_has_one_image_per_class(sample):
    assert sorted(sample) == list(range(1000))


@pytest.mark.parametrize(("test_set", "name"), [(ImageNetA, "imagenet_a"), (ImageNetR, "imagenet_r")])
def test_a_and_r_keep_imagenet_indices(sample, tmp_path, test_set, name):
    """Numbering the folders would give 0 to 199."""
    class_subset = class_subset_indices(name)
    assert len(set(class_subset)) == 200
    for label in class_subset:
        place(sample[label], tmp_path / wnids()[label] / "0.123_junco.jpg")
    (tmp_path / "README.txt").write_text("read me")
    data = open_test(test_set(root=str(tmp_path)), CONFIG)
    assert data.class_subset == class_subset
    assert sorted(data.images.labels) == class_subset != list(range(200))
    assert data.num_classes == 1000
    check_labels(data, sample)
    assert data.notes == [f"200 of {test_set.images_expected:,} images are there"]
    assert data.cache_fields == {"class": test_set.__name__}


def test_class_subsets_are_the_published_ones():
    """Stingray to acorn, and goldfish to acorn: the first and last folders of the two archives."""
    a, r = ([wnids()[label] for label in class_subset_indices(name)] for name in ("imagenet_a", "imagenet_r"))
    assert (a[0], a[-1]) == ("n01498041", "n12267677")
    assert (r[0], r[-1]) == ("n01443537", "n12267677")


def test_incomplete_sets_are_counted(sample, tmp_path, caplog):
    for label in class_subset_indices("imagenet_a")[:150]:
        place(sample[label], *(tmp_path / wnids()[label] / f"{copy}.jpg" for copy in range(2)))
    (tmp_path / wnids()[class_subset_indices("imagenet_a")[150]]).mkdir()
    data = open_test(ImageNetA(root=str(tmp_path)), CONFIG)
    classes, images = data.notes
    assert classes.startswith("50 of 200 classes have no images (n0")
    assert images == "300 of 7,500 images are there"
    assert "ImageNet-A: 50 of 200 classes have no images" in caplog.text


def test_folders_of_other_classes_are_refused(sample, tmp_path):
    subset = class_subset_indices("imagenet_a")
    other = next(label for label in range(1000) if label not in subset)
    for label in (subset[0], other):
        place(sample[label], tmp_path / wnids()[label] / "x.jpg")
    with pytest.raises(UserError, match=rf"1 folders that are not classes \({wnids()[other]}\)") as error:
        ImageNetA(root=str(tmp_path)).setup("test")
    assert not isinstance(error.value, MissingData)


@pytest.mark.parametrize("subdir", ["", "imagenetv2-{}-format-val"])
@pytest.mark.parametrize("variant", ["matched-frequency", "threshold0.7", "top-images"])
def test_v2_labels_are_folder_numbers(sample, tmp_path, variant, subdir):
    """Sorted as text, only 12 of 1,000 folders would keep their index."""
    labels = [0, 1, 2, 9, 10, 11, 99, 100, 101, 999, *range(500, 520)]
    for label in labels:
        place(sample[label], tmp_path / subdir.format(variant) / str(label) / "0a1b.jpeg")
    data = open_test(ImageNetV2(root=str(tmp_path), variant=variant), CONFIG)
    assert sorted(data.images.labels) == sorted(labels)
    check_labels(data, sample)
    assert data.title == f"ImageNet-V2 ({variant})"
    assert data.notes[0].startswith("970 of 1,000 classes have no images")


def test_v2_never_reads_another_variant(sample, tmp_path):
    for root in (tmp_path / "all", tmp_path / "imagenetv2-top-images-format-val"):
        inner = root / "imagenetv2-top-images-format-val" if root.name == "all" else root
        for label in range(3):
            place(sample[label], inner / str(label) / "x.jpeg")
        with pytest.raises(MissingData, match=r"ImageNet-V2 \(threshold0.7\): no images in folders such as 0"):
            ImageNetV2(root=str(root), variant="threshold0.7").setup("test")
        assert len(open_test(ImageNetV2(root=str(root), variant="top-images"), CONFIG).images) == 3
    place(sample[5], tmp_path / "wnids" / wnids()[5] / "x.jpeg")
    with pytest.raises(MissingData, match="no images in folders such as 0"):
        ImageNetV2(root=str(tmp_path / "wnids")).setup("test")


@pytest.mark.parametrize(("test_set", "subdir"), [(ImageNetSketch, "sketch"), (ImageNetSketch, ""),
                                                  (StylizedImageNet, "val"), (StylizedImageNet, "")])  # fmt: skip
def test_sketch_and_stylized_labels_are_wnids(sample, tmp_path, test_set, subdir):
    for label in range(3, 1000, 41):
        place(sample[label], tmp_path / subdir / wnids()[label] / "sketch_1.JPEG")
    check_labels(open_test(test_set(root=str(tmp_path)), CONFIG), sample)


def test_stylized_never_reads_training_images(sample, tmp_path):
    place(sample[0], tmp_path / "train" / wnids()[0] / "x.JPEG")
    with pytest.raises(MissingData, match="no images in folders such as n01440764 in"):
        StylizedImageNet(root=str(tmp_path)).setup("test")
