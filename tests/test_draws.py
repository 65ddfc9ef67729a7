import torch

from nsaug.draws import generator


def draw(*key):
    return torch.rand(1000, generator=generator("cpu", *key))


def test_the_same_key_draws_the_same():
    assert torch.equal(draw(0, 1, 2), draw(0, 1, 2))


def test_other_keys_draw_independently():
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 3), (0, 1, 2, 0)]
    values = torch.stack([draw(*key) for key in keys])
    correlation = torch.corrcoef(values) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.15


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(5)
    assert torch.equal(torch.rand(3), expected)
