"""Scaling to an influence against the closed form of a linear model with two classes."""

import pytest
import torch

from nsaug.nullspace import influence, match_influence, scaled
from tests.conftest import linear_vit

EPS = 0.02


def closed_form(vit, images, noise, eps):
    """The scale at which 2 (sigmoid(z + s d) - sigmoid(z))² = ε, z the clean logit and d what the noise adds to it."""
    with torch.no_grad():
        clean, moved = vit(images), vit(images, noise)
    z, d = clean[:, 1] - clean[:, 0], (moved - clean)[:, 1] - (moved - clean)[:, 0]
    goal = z.sigmoid() + d.sign() * (eps / 2) ** 0.5
    return (torch.logit(goal) - z) / d


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_an_image_noise_is_scaled_to_the_closed_form(images, generator, size):
    vit = linear_vit()
    noise = size * torch.randn(6, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = match_influence(vit, images, noise, vit(images), EPS, steps=40, tolerance=1e-3)
    assert found.matched.all()
    torch.testing.assert_close(found.scale, closed_form(vit, images, noise, EPS), rtol=1e-3, atol=0)
    actual = influence(vit(images, scaled(noise, found.scale)), vit(images))
    torch.testing.assert_close(found.influence, actual.detach())
    assert (actual < EPS).all()


def test_a_shared_noise_is_scaled_by_the_mean_influence(vit, images, generator):
    noise = torch.randn(1, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        clean = vit(images)
        found = match_influence(vit, images, noise, clean, EPS)
        mean = influence(vit(images, scaled(noise, found.scale)), clean).mean()
    assert found.scale.shape == (1,)
    assert 0.9 * EPS <= mean < EPS


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_a_dozen_forwards_do_on_a_transformer(vit, images, generator, size):
    noise = size * torch.randn(6, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        clean = vit(images)
        found = match_influence(vit, images, noise, clean, EPS, steps=12)
        actual = influence(vit(images, scaled(noise, found.scale)), clean)
    assert found.matched.all()
    assert ((actual >= 0.9 * EPS) & (actual < EPS)).all()


def test_what_cannot_get_there_is_said_to_be_unmatched(images):
    vit = linear_vit()
    nothing = torch.zeros(6, *vit.noise_shape(), dtype=torch.float64)
    nothing[0] = 1.0
    with torch.no_grad():
        found = match_influence(vit, images, nothing, vit(images), EPS)
    assert found.matched.tolist() == [True, *[False] * 5]
    assert (found.influence < EPS).all()
