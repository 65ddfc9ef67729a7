import random

import numpy as np
import pytest
import torch

from nsaug.utils.rng import _splitmix, make_generator, seed_devices_scope, seed_scope


def draw(*key):
    return torch.rand(1000, generator=make_generator("cpu", *key))


def test_same_key_gives_same_stream():
    assert torch.equal(draw(0, 1, 2), draw(0, 1, 2))


def test_different_keys_give_independent_streams():
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 3), (0, 1, 2, 0)]
    values = torch.stack([draw(*key) for key in keys])
    correlation = torch.corrcoef(values) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.15


def test_make_generator_keeps_the_global_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw(5)
    assert torch.equal(torch.rand(3), expected)


def test_splitmix_reference_values():
    """The first two values of Vigna's splitmix64.c for seed 0."""
    assert _splitmix(0) == 0xE220A8397B1DCDAF
    assert _splitmix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


@pytest.mark.parametrize("draw_one", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_adjacent_keys_seed_all_libraries_independently(draw_one):
    def draw_seeded(*key):
        with seed_scope(*key):
            return draw_one()

    values = np.array([[draw_seeded(epoch, position) for position in range(400)] for epoch in range(3)])
    assert abs(values.mean() - 0.5) < 0.05
    assert len(np.unique(values)) == values.size
    correlation = np.corrcoef(np.stack([values[0, :-1], values[0, 1:], values[1, :-1], values[2, 1:]]))
    assert np.abs(correlation - np.eye(4)).max() < 0.2
    assert draw_seeded(1, 2) == draw_seeded(1, 2) != draw_seeded(2, 1)


@pytest.mark.parametrize("scope", [seed_scope, seed_devices_scope])
def test_seed_scope_restores_the_global_state(scope):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with scope(3, 4):
            drawn.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
