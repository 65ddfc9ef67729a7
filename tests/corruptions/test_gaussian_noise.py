import torch

from nsaug.corruptions import GaussianNoise
from nsaug.utils.rng import make_generator


def test_adds_the_given_noise_to_every_image():
    corruption = GaussianNoise(std=0.1)
    images = torch.full((2, 3, 64, 64), 0.5)
    params = torch.stack([corruption.make_params((3, 64, 64), make_generator("cpu", key)) for key in range(2)])
    corrupted = corruption(images, params)
    torch.testing.assert_close(corrupted, 0.5 + 0.1 * params)
    assert torch.equal(corruption(images[1:], params[1:]), corrupted[1:])
    assert abs((corrupted - images).std() - 0.1) < 0.002


def test_result_is_clipped():
    corruption = GaussianNoise(std=2.0)
    corrupted = corruption(torch.rand(1, 3, 8, 8), [corruption.make_params((3, 8, 8), make_generator("cpu", 0))])
    assert corrupted.min() == 0
    assert corrupted.max() == 1
