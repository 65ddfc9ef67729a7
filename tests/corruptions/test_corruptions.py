"""The 19 corruptions against imagecorruptions, given the same random numbers, on two photographs."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.corruptions.functional import CORRUPTIONS
from nsaug.corruptions.severities import CIFAR, IMAGENET
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator

library = pytest.importorskip("imagecorruptions.corruptions", reason="needs nsaug[corruptions]")

REWRITTEN = {"snow", "frost", "elastic_transform"}
"""Corruptions in which imagecorruptions deviates from ImageNet-C's script: crops, pictures, the affine map."""

all_corruptions = pytest.mark.parametrize("name", IMAGENET)


def photographs(side):
    """Two photographs, (2, side, side, 3) in uint8."""
    resized = [Image.fromarray(image).resize((side, side), Image.BICUBIC) for image in load_sample_images().images]
    return np.stack([np.array(image) for image in resized])


def to_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def to_pixels(images):
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def make_params(corruption, images):
    return [
        corruption.make_params(tuple(image.shape), make_generator("cpu", index)) for index, image in enumerate(images)
    ]


class FixedGenerator(np.random.Generator):
    """Returns given arrays instead of random ones."""

    def __init__(self, *arrays):
        super().__init__(np.random.PCG64())
        self.arrays = list(arrays)

    def random(self, shape):
        array = self.arrays.pop(0)
        assert array.shape == tuple(shape)
        return array


def reference(name, pixels, severity, params):
    """The library's corruption of one image, with our random parameters in place of its random numbers."""
    values = {key: value.numpy() for key, value in params.items()}
    channels_last = {key: value.transpose(1, 2, 0) for key, value in values.items() if value.ndim == 3}
    num_plasma_used = 0
    shifts = iter(values["shifts"].reshape(-1, 2)) if "shifts" in values else None

    def normal(loc=0.0, scale=1.0, size=None):
        array = channels_last["normal"] if len(size) == 3 else values["normal"][0]
        assert array.shape == tuple(size)
        return loc + scale * array

    def uniform(low, high, size=None):
        nonlocal num_plasma_used
        if "angle" in values:
            assert low <= values["angle"] <= high
            return float(values["angle"])
        count = int(np.prod(size))
        num_plasma_used += count
        return high * values["plasma"][num_plasma_used - count : num_plasma_used].reshape(size)

    def randint(low, high, size):
        array = next(shifts)
        assert np.all(low <= array)
        assert np.all(array < high)
        return array.astype(int)

    def poisson(rate):
        return stats.poisson.ppf(np.maximum(channels_last["uniform"], 1e-300), rate)

    shuffle = library._shuffle_pixels_njit_glass_blur.py_func
    options = {}
    if name == "impulse_noise":
        options["seed"] = FixedGenerator(channels_last["hit"], channels_last["salt"])
    with (
        mock.patch.multiple(np.random, normal=normal, uniform=uniform, randint=randint, poisson=poisson, seed=len),
        mock.patch.object(library, "_shuffle_pixels_njit_glass_blur", lambda a, b, x, c, seed: shuffle(a, b, x, c, ())),
    ):
        corrupted = np.uint8(getattr(library, name)(Image.fromarray(pixels), severity, **options))
    assert shifts is None or next(shifts, None) is None
    assert num_plasma_used == len(values.get("plasma", ()))
    return corrupted


@pytest.mark.parametrize("name", [name for name in IMAGENET if name not in REWRITTEN])
def test_matches_imagecorruptions(name):
    severity = 3  # test_originals.py covers all severities
    pixels = photographs(96 if name == "glass_blur" else 224)
    corruption = Corruption(name=name, severity=severity)
    params = make_params(corruption, to_images(pixels))
    corrupted = to_pixels(corruption(to_images(pixels), params)).astype(int)
    expected = np.stack([reference(name, image, severity, own) for image, own in zip(pixels, params, strict=True)])
    difference = np.abs(corrupted - expected)
    assert difference.max() <= 1, (difference.max(), (difference > 1).mean())
    assert np.abs(corrupted - pixels).mean() > 0.5, "nothing was changed"


@pytest.mark.parametrize("side", [32, 8, 40])
@all_corruptions
def test_result_does_not_depend_on_the_batch(name, side):
    images = to_images(photographs(side))[..., : side - side // 4]
    corruption = Corruption(name=name, severity=4)
    params = make_params(corruption, images)
    corrupted = corruption(images, params)
    assert corrupted.shape == images.shape
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    torch.testing.assert_close(corrupted * 255, (corrupted * 255).round(), atol=1e-3, rtol=0)
    for index in range(2):
        alone = corruption(images[index : index + 1], params[index : index + 1])
        assert (corrupted[index] - alone[0]).abs().max() <= 1.01 / 255  # the order of summation may differ
        assert ((corrupted[index] - alone[0]).abs() > 1e-6).float().mean() < 0.01
    assert torch.equal(corruption(images, make_params(corruption, images)), corrupted)


@pytest.mark.parametrize("side", [32, 64])
@all_corruptions
def test_higher_severity_changes_more(name, side):
    images = to_images(photographs(side))
    changes = []
    for severity in range(1, 6):
        corruption = Corruption(name=name, severity=severity)
        corrupted = corruption(images, make_params(corruption, images))
        changes.append(float((corrupted - images).square().mean().sqrt()))
    if name == "saturate":  # severities 1 and 2 lower the saturation, the others raise it
        changes = [changes[1], changes[4]]
    assert min(changes) > 0
    if name != "elastic_transform":  # its affine map gets weaker with severity
        assert changes[-1] > changes[0], changes


def test_small_images_use_the_constants_of_cifar_10_c():
    images = to_images(photographs(32))
    noise = Corruption(name="gaussian_noise", severity=5)
    params = make_params(noise, images)
    expected = (images + 0.10 * torch.stack([own["normal"] for own in params])).clamp(0, 1)
    assert (noise(images, params) - expected).abs().max() <= 1.01 / 255
    contrast = Corruption(name="contrast", severity=2)
    mean = images.mean((2, 3), keepdim=True)
    assert (contrast(images, [{}, {}]) - (0.5 * images + 0.5 * mean)).abs().max() <= 1.01 / 255
    assert Corruption(name="jpeg_compression", severity=1)._constants((32, 32)) == 80
    assert Corruption(name="jpeg_compression", severity=1)._constants((33, 32)) == 25


def test_every_corruption_has_five_severities():
    assert IMAGENET.keys() == CIFAR.keys() == CORRUPTIONS.keys()
    assert all(len(table[name]) == 5 for table in (IMAGENET, CIFAR) for name in table)
    assert len(TEST_CORRUPTIONS) == 15


def test_shot_noise_has_the_moments_of_poisson():
    images = torch.full((1, 3, 200, 200), 128 / 255)
    params = make_params(Corruption(name="shot_noise", severity=2), images)
    counts = CORRUPTIONS["shot_noise"].apply(images, params, 25) * 25
    rate = 25 * 128 / 255
    assert float(counts.mean()) == pytest.approx(rate, rel=0.01)
    assert float(counts.var()) == pytest.approx(rate, rel=0.02)


def test_missing_library_is_named(monkeypatch):
    corruption, images = Corruption(name="spatter"), torch.rand(1, 3, 64, 64)
    params = make_params(corruption, images)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"needs cv2: pip install 'nsaug\[corruptions\]'"):
        corruption(images, params)
