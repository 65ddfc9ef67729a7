import pytest
import timm
import torch
from PIL import Image

from nsaug.data import ImageNet
from nsaug.utils.errors import UserError
from tests.data.helpers import config, fit_data, make_tree, open_test


def test_labels_are_the_indices_of_pretrained_models(imagenet):
    """12 classes whose positions among the 12 differ from their indices."""
    data = fit_data(ImageNet(root=str(imagenet), val_fraction=0.25))
    test_images = open_test(data.test_dataset()).images
    info = timm.data.ImageNetInfo()
    for images in (data.train_set, data.val_set, test_images):
        for name, label in zip(images.ids, images.labels, strict=True):
            wnid, file = name.split("/")[1:]
            assert info.index_to_label_name(label) == wnid
            described = file.split("_", 2)[2].removesuffix(".JPEG").replace("_", " ").lower()
            assert described in info.index_to_description(label).lower().replace("_", " ")
    assert data.num_classes == 1000
    assert min(test_images.labels) >= 500


def test_images_are_prepared_as_by_timm(imagenet):
    pretrained_cfg = timm.get_pretrained_cfg("deit_small_patch16_224").to_dict()
    data_config = timm.data.resolve_data_config({}, pretrained_cfg=pretrained_cfg)
    expected = timm.data.create_transform(**data_config)
    data = open_test(ImageNet(root=str(imagenet)).test_dataset(), data_config)
    mean, std = (torch.tensor(data_config[key]).view(3, 1, 1) for key in ("mean", "std"))
    for index in (0, 13):
        image, _, name = data.images[index]
        with Image.open(imagenet / name) as file:
            torch.testing.assert_close((image - mean) / std, expected(file.convert("RGB")), atol=1e-6, rtol=0)


def test_training_images_are_cropped_at_random(imagenet):
    data = fit_data(ImageNet(root=str(imagenet), val_fraction=0), config(64))
    torch.manual_seed(0)
    crops = torch.stack([data.train_set[0][0] for _ in range(4)])
    assert crops.shape == (4, 3, 64, 64)
    assert 0 <= crops.min() < crops.max() <= 1
    assert all((crops[0] - crop).abs().mean() > 0.01 for crop in crops[1:])


def test_unknown_folders_are_refused(tmp_path):
    make_tree(tmp_path / "val", ["n01440764", "n00000001"])
    with pytest.raises(UserError, match=r"1 folders that are not classes \(n00000001\)"):
        ImageNet(root=str(tmp_path)).test_dataset().setup()
