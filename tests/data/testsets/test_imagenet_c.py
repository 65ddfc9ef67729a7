import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nsaug.data import ImageNet3DCC, ImageNetC, ImageNetCBar, MissingData
from nsaug.data.names import wnids
from nsaug.utils.errors import UserError
from tests.data.helpers import config, open_test
from tests.data.testsets.helpers import CONFIG


def save_imagenet_c(sample, root, labels, corruption="fog"):
    """Save images whose brightness depends on the severity."""
    for label in labels:
        for severity in range(1, 6):
            path = root / corruption / str(severity) / wnids()[label] / f"ILSVRC2012_val_{label:08d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(sample[label]) as image:
                image.convert("RGB").resize((224, 224)).point(lambda v, s=severity: v // s).save(path, quality=95)


@pytest.mark.parametrize("subdir", ["", "weather"])
@pytest.mark.parametrize("severity", [1, 5])
def test_pixels_are_kept(sample, tmp_path, subdir, severity):
    labels = [3, 500, 999]
    save_imagenet_c(sample, tmp_path / subdir, labels)
    data = open_test(ImageNetC(root=str(tmp_path), corruption="fog", severity=severity), CONFIG)
    assert data.images.labels == labels
    for index, expected in enumerate(labels):
        pixels, label, name = data.images[index]
        assert label == expected
        assert name == f"{wnids()[label]}/ILSVRC2012_val_{label:08d}.JPEG", "the same id at all severities"
        with Image.open(tmp_path / subdir / "fog" / str(severity) / name) as stored:
            torch.testing.assert_close(pixels, torch.tensor(np.array(stored)).permute(2, 0, 1) / 255)
    assert data.notes == ["stored", "997 of 1,000 classes have no images (n01440764, n01443537, n01484850, ...)",
                          "3 of 50,000 images are there"]  # fmt: skip
    assert data.cache_fields == {"class": "ImageNetC", "corruption": "fog", "severity": severity}
    data.configure(config(96))
    assert data.images[0][0].shape == (3, 96, 96)
    assert data.notes[-1] == "resized from 224 to 96 px"


def test_unknown_corruptions_and_severities_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ImageNet-C has no corruption 'fogg': choose one of gaussian_noise, shot_"):
        ImageNetC(root=str(tmp_path), corruption="fogg", severity=1)
    for severity in (0, 6):
        with pytest.raises(ValueError, match="severity"):
            ImageNetC(root=str(tmp_path), corruption="fog", severity=severity)


def test_corruptions_are_the_published_ones():
    assert len(ImageNetC.corruptions) == 15
    assert {"speckle_noise", "gaussian_blur", "spatter", "saturate"} == set(ImageNetC.extra_corruptions)
    assert ImageNetC(root="nowhere", corruption="spatter", severity=1).corruption == "spatter"


def test_missing_folders_are_refused(sample, tmp_path):
    save_imagenet_c(sample, tmp_path, [3])
    shutil.rmtree(tmp_path / "fog" / "5")
    message = r"ImageNet-C: there is no folder .*fog/5; it is published at https://zenodo"
    with pytest.raises(MissingData, match=message):
        ImageNetC(root=str(tmp_path), corruption="fog", severity=5).setup()
    (tmp_path / "fog" / "5").mkdir()
    with pytest.raises(MissingData, match=r"ImageNet-C: .*fog/5 has no images in WNID/; it is published at"):
        ImageNetC(root=str(tmp_path), corruption="fog", severity=5).setup()
    with pytest.raises(MissingData, match=r"ImageNet-C: there is no folder .*snow"):
        ImageNetC(root=str(tmp_path), corruption="snow", severity=1).setup()
    (tmp_path / "fog" / "1" / "n0").mkdir()
    with pytest.raises(UserError, match=r"fog/1 has 1 folders that are not classes \(n0\)"):
        ImageNetC(root=str(tmp_path), corruption="fog", severity=1).setup()


def test_resized_copies_are_refused(sample, tmp_path):
    save_imagenet_c(sample, tmp_path, [3])
    for path in tmp_path.rglob("*.JPEG"):
        with Image.open(path) as image:
            image.resize((256, 256)).save(path)
    data = open_test(ImageNetC(root=str(tmp_path), corruption="fog", severity=2), CONFIG)
    with pytest.raises(UserError, match="stored at 224 x 224 px, this copy has one of 256 x 256"):
        data.images[0]


@pytest.mark.parametrize(
    ("test_set", "corruption", "count"), [(ImageNet3DCC, "h265_abr", 12), (ImageNetCBar, "sparkles", 10)]
)
def test_3dcc_and_c_bar_have_the_layout_of_imagenet_c(sample, tmp_path, test_set, corruption, count):
    save_imagenet_c(sample, tmp_path / "unpacked", [7, 400], corruption)
    data = open_test(test_set(root=str(tmp_path), corruption=corruption, severity=4), CONFIG)
    assert data.images.labels == [7, 400]
    for pixels, _, name in data.images:
        with Image.open(tmp_path / "unpacked" / corruption / "4" / name) as stored:
            torch.testing.assert_close(pixels, torch.tensor(np.array(stored)).permute(2, 0, 1) / 255)
    assert len(set(test_set.corruptions)) == count
    assert not test_set.extra_corruptions
    with pytest.raises(UserError, match="has no corruption 'fog': choose one of"):
        test_set(root=str(tmp_path), corruption="fog", severity=4)
