import torch

from nsaug.corruptions import GaussianNoise
from nsaug.utils.rng import make_generator


def test_it_is_a_pure_function_of_image_and_draws():
    corruption = GaussianNoise(std=0.1)
    images = torch.full((2, 3, 64, 64), 0.5)
    draws = torch.stack([corruption.draw((3, 64, 64), make_generator("cpu", key)) for key in range(2)])
    corrupted = corruption(images, draws)
    torch.testing.assert_close(corrupted, 0.5 + 0.1 * draws)
    assert torch.equal(corruption(images[1:], draws[1:]), corrupted[1:])
    assert abs((corrupted - images).std() - 0.1) < 0.002


def test_images_stay_in_their_range():
    corruption = GaussianNoise(std=2.0)
    corrupted = corruption(torch.rand(1, 3, 8, 8), [corruption.draw((3, 8, 8), make_generator("cpu", 0))])
    assert corrupted.min() == 0
    assert corrupted.max() == 1
