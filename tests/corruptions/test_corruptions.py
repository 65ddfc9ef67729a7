"""The 19 corruptions against imagecorruptions, with the same draws injected there, on two photographs."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images

from nsaug.corruptions import TEST_CORRUPTIONS, Corruption
from nsaug.corruptions.functional import KINDS
from nsaug.corruptions.severities import CIFAR, IMAGENET
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator

library = pytest.importorskip("imagecorruptions.corruptions", reason="needs the extra corruptions")


def photographs(side):
    """Two, (2, side, side, 3) in uint8."""
    found = [Image.fromarray(image).resize((side, side), Image.BICUBIC) for image in load_sample_images().images]
    return np.stack([np.array(image) for image in found])


def as_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


class Fixed(np.random.Generator):
    """Gives numbers that are already drawn."""

    def __init__(self, *numbers):
        super().__init__(np.random.PCG64())
        self.numbers = list(numbers)

    def random(self, shape):
        (found,) = [self.numbers.pop(0)]
        assert found.shape == tuple(shape)
        return found


def theirs(name, pixels, severity, draws):
    """The library's corruption of one image, with our draws in place of its own."""
    values = {key: value.numpy() for key, value in draws.items()}
    last = {key: value.transpose(1, 2, 0) for key, value in values.items() if value.ndim == 3}
    used = {"plasma": 0}

    def normal(loc=0.0, scale=1.0, size=None):
        found = last["normal"] if len(size) == 3 else values["normal"][0]
        assert found.shape == tuple(size)
        return loc + scale * found

    fields = list(values.get("field", []))

    def uniform(low, high, size=None):
        if "angle" in values:
            assert low <= values["angle"] <= high
            return float(values["angle"])
        if fields:
            return (low + high) / 2 + (high - low) / 2 * fields.pop(0)
        count = int(np.prod(size))
        used["plasma"] += count
        part = values["plasma"][used["plasma"] - count : used["plasma"]].reshape(size)
        return high * part

    integers = [values[key] for key in ("number", "top", "left") if key in values]
    moves = iter(values["moves"].reshape(-1, 2)) if "moves" in values else None

    def randint(low, high=None, size=None):
        found = next(moves) if moves is not None else integers.pop(0)
        assert np.all((0 if high is None else low) <= found)
        assert np.all(found < (low if high is None else high))
        return found.astype(int) if moves is not None else int(found)

    poisson = lambda rate: stats.poisson.ppf(np.maximum(last["uniform"], 1e-300), rate)  # noqa: E731
    shuffle = library._shuffle_pixels_njit_glass_blur.py_func
    options = {"seed": Fixed(last["hit"], last["salt"])} if name == "impulse_noise" else {}
    with (
        mock.patch.multiple(np.random, normal=normal, uniform=uniform, randint=randint, poisson=poisson, seed=len),
        mock.patch.object(library, "_shuffle_pixels_njit_glass_blur", lambda a, b, x, c, seed: shuffle(a, b, x, c, ())),
    ):
        found = np.uint8(getattr(library, name)(Image.fromarray(pixels), severity, **options))
    assert moves is None or next(moves, None) is None, "all moves were made"
    assert used["plasma"] == len(values.get("plasma", ()))
    return found


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", IMAGENET)
def test_against_the_library(name, severity):
    side = 96 if name == "glass_blur" else 224
    pixels = photographs(side)
    corruption = Corruption(name=name, severity=severity)
    draws = [corruption.draw((3, side, side), make_generator("cpu", key)) for key in range(2)]
    ours = (corruption(as_images(pixels), draws) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = np.stack([theirs(name, image, severity, own) for image, own in zip(pixels, draws, strict=True)])
    apart = np.abs(ours.astype(int) - expected.astype(int))
    assert apart.max() <= 1, (apart.max(), (apart > 1).mean())
    assert np.abs(ours.astype(int) - pixels.astype(int)).mean() > 0.5, "something was done"


@pytest.mark.parametrize("side", [32, 8, 40])
@pytest.mark.parametrize("name", IMAGENET)
def test_an_image_does_not_depend_on_its_neighbours(name, side):
    """Small images too, with CIFAR-10-C's constants, and of an odd aspect."""
    images = as_images(photographs(side))[..., : side - side // 4]
    corruption = Corruption(name=name, severity=4)
    draws = [corruption.draw(tuple(images.shape[1:]), make_generator("cpu", key)) for key in range(2)]
    together = corruption(images, draws)
    assert together.shape == images.shape
    assert 0 <= together.min() <= together.max() <= 1
    torch.testing.assert_close(together * 255, (together * 255).round(), atol=1e-3, rtol=0)
    for index in range(2):
        alone = corruption(images[index : index + 1], draws[index : index + 1])
        assert (together[index] - alone[0]).abs().max() <= 1.01 / 255  # sums in another order
        assert ((together[index] - alone[0]).abs() > 1e-6).float().mean() < 0.01
    again = [corruption.draw(tuple(images.shape[1:]), make_generator("cpu", key)) for key in range(2)]
    assert torch.equal(corruption(images, again), together)


@pytest.mark.parametrize("name", IMAGENET)
def test_each_severity_changes_more(name):
    """On the mean over both photographs; the colours of `saturate` go one way and then the other."""
    for side in (32, 64):
        images = as_images(photographs(side))
        changes = []
        for severity in range(1, 6):
            corruption = Corruption(name=name, severity=severity)
            draws = [corruption.draw(tuple(images.shape[1:]), make_generator("cpu", key)) for key in range(2)]
            changes.append(float((corruption(images, draws) - images).square().mean().sqrt()))
        if name == "saturate":
            changes = [changes[1], changes[4]]
        assert min(changes) > 0
        if (name, side) != ("elastic_transform", 32):  # there the affine map gets weaker
            assert changes[-1] > changes[0], changes


def test_small_images_get_the_constants_of_cifar_10_c():
    """Against formulas with numbers from the scripts that made the set."""
    images = as_images(photographs(32))
    noise = Corruption(name="gaussian_noise", severity=5)
    draws = [noise.draw((3, 32, 32), make_generator("cpu", key)) for key in range(2)]
    expected = (images + 0.10 * torch.stack([own["normal"] for own in draws])).clamp(0, 1)
    assert (noise(images, draws) - expected).abs().max() <= 1.01 / 255
    contrast = Corruption(name="contrast", severity=2)
    mean = images.mean((2, 3), keepdim=True)
    assert (contrast(images, [{}, {}]) - (0.5 * images + 0.5 * mean)).abs().max() <= 1.01 / 255
    assert Corruption(name="jpeg_compression", severity=1)._constants((32, 32)) == 80
    assert Corruption(name="jpeg_compression", severity=1)._constants((33, 32)) == 25
    assert IMAGENET.keys() == CIFAR.keys() == KINDS.keys()
    assert all(len(table[name]) == 5 for table in (IMAGENET, CIFAR) for name in table)
    assert len(TEST_CORRUPTIONS) == 15


def test_photons_are_counted_by_poisson():
    """Mean and variance of shot noise, at a grey of 128 / 255."""
    images = torch.full((1, 3, 200, 200), 128 / 255)
    corruption = Corruption(name="shot_noise", severity=2)
    counts = KINDS["shot_noise"].apply(images, [corruption.draw((3, 200, 200), make_generator("cpu", 0))], 25) * 25
    rate = 25 * 128 / 255
    assert float(counts.mean()) == pytest.approx(rate, rel=0.01)
    assert float(counts.var()) == pytest.approx(rate, rel=0.02)


def test_what_is_not_installed_is_named(monkeypatch):
    corruption = Corruption(name="spatter")
    draws = [corruption.draw((3, 64, 64), make_generator("cpu", 0))]
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"needs cv2: pip install 'nsaug\[corruptions\]'"):
        corruption(torch.rand(1, 3, 64, 64), draws)
