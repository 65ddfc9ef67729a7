import torch
from sklearn.datasets import load_digits

from nsaug.data import Digits
from tests.data.helpers import fit_data, open_test


def test_splits_share_no_image():
    data = fit_data(Digits())
    test_images = open_test(data.test_dataset()).images
    splits = [set(images.ids) for images in (data.train_set, data.val_set, test_images)]
    assert [len(ids) for ids in splits] == [1310, 128, 359]
    assert len(set.union(*splits)) == 1797
    assert data.num_classes == 10


def test_pixels_and_labels_are_those_of_scikit_learn():
    images, source = open_test(Digits().test_dataset()).images, load_digits()
    for index in (0, 100, 358):
        pixels, label, image_id = images[index]
        original = int(image_id.removeprefix("digits/"))
        assert label == source.target[original]
        torch.testing.assert_close(pixels[1], torch.tensor(source.images[original] / 16).float(), atol=1 / 255, rtol=0)
