"""The 19 corruptions against the scripts that made ImageNet-C and CIFAR-10-C, given the same random numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images

from nsaug.corruptions import Corruption
from nsaug.corruptions.severities import IMAGENET
from nsaug.utils.rng import make_generator

pytest.importorskip("imagecorruptions", reason="needs nsaug[corruptions]")
from tests.corruptions import originals


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", IMAGENET)
def test_follows_the_original_script(name, side, severity):
    pixels = np.array(Image.fromarray(load_sample_images().images[0]).resize((side, side), Image.BICUBIC))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    corruption = Corruption(name=name, severity=severity)
    params = corruption.make_params((3, side, side), make_generator("cpu", severity))
    corrupted = (corruption(images, [params])[0] * 255).round().permute(1, 2, 0).numpy()
    expected = originals.corrupt(name, pixels, severity, {key: value.numpy() for key, value in params.items()})
    difference = corrupted - expected
    assert np.abs(difference).max() <= 1, (np.abs(difference).max(), (np.abs(difference) > 1).mean())
    assert abs(difference.mean()) < 0.1  # 0.5 if rounded and truncated values were mixed up
    assert np.abs(expected - 1.0 * pixels).mean() > 0.5, "nothing was changed"


UNIFORM, SYMMETRIC = stats.uniform(0, 1), stats.uniform(-1, 2)
DISTRIBUTIONS = {
    ("gaussian_noise", "normal"): stats.norm(),
    ("speckle_noise", "normal"): stats.norm(),
    ("snow", "normal"): stats.norm(),
    ("spatter", "normal"): stats.norm(),
    ("shot_noise", "uniform"): UNIFORM,
    ("impulse_noise", "hit"): UNIFORM,
    ("impulse_noise", "salt"): UNIFORM,
    ("fog", "plasma"): SYMMETRIC,
    ("elastic_transform", "field"): SYMMETRIC,
    ("elastic_transform", "corners"): SYMMETRIC,
    ("motion_blur", "angle"): stats.uniform(-45, 90),
    ("snow", "angle"): stats.uniform(-135, 90),
}


def draws(name, severity, side, count):
    corruption = Corruption(name=name, severity=severity)
    return [corruption.make_params((3, side, side), make_generator("cpu", index)) for index in range(count)]


@pytest.mark.parametrize(("name", "key"), DISTRIBUTIONS)
def test_random_numbers_have_the_original_distribution(name, key):
    sample = np.concatenate([own[key].flatten().numpy() for own in draws(name, 1, 32, 500)])
    assert stats.kstest(sample[:5000], DISTRIBUTIONS[name, key].cdf).pvalue > 0.001


def test_glass_blur_shifts_by_less_than_the_maximum_to_the_right():
    shifts = torch.cat([own["shifts"].flatten() for own in draws("glass_blur", 4, 64, 2)])  # at most 3 px
    values, counts = shifts.unique(return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2]
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("side", [32, 224])
def test_frost_draws_from_the_first_five_pictures(side):
    indices = torch.stack([own["index"] for own in draws("frost", 1, side, 500)])
    values, counts = indices.unique(return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4]
    assert stats.chisquare(counts).pvalue > 0.001
