"""Random noise as a control, and scaling to an influence against the closed form of a linear model."""

import pytest
import torch

from nsaug.nullspace import NullspaceNoise, RandomNoise, UniversalNoise, influence, match_influence
from nsaug.nullspace.noise import root_mean_square, scale_noise
from nsaug.utils.rng import make_generator
from tests.conftest import linear_vit, tiny_vit

EPS = 0.02
REFERENCE = NullspaceNoise(eps=EPS, init_scale=0.5)


def closed_form(vit, images, noise, eps):
    """The scale s at which 2 (sigmoid(z + s d) - sigmoid(z))^2 = eps, z the clean logit and d what the noise adds."""
    with torch.no_grad():
        clean, noisy = vit(images), vit(images, noise)
    z, d = clean[:, 1] - clean[:, 0], (noisy - clean)[:, 1] - (noisy - clean)[:, 0]
    goal = z.sigmoid() + d.sign() * (eps / 2) ** 0.5
    return (torch.logit(goal) - z) / d


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_scale_converges_to_the_closed_form(images, generator, size):
    vit = linear_vit()
    noise = size * torch.randn(6, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    clean = vit(images).detach()
    matched = match_influence(vit, images, noise, clean, EPS, num_steps=40)
    torch.testing.assert_close(matched.scale, closed_form(vit, images, noise, EPS), rtol=1e-6, atol=0)
    actual = influence(vit(images, scale_noise(noise, matched.scale)), clean).detach()
    torch.testing.assert_close(matched.influence, actual)
    assert (actual < EPS).all()


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_ten_forwards_suffice_on_a_transformer(vit, images, generator, size):
    noise = size * torch.randn(6, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    clean = vit(images).detach()
    matched = match_influence(vit, images, noise, clean, EPS)
    actual = influence(vit(images, scale_noise(noise, matched.scale)), clean).detach()
    assert ((actual >= 0.7 * EPS) & (actual < EPS)).all()


def test_shared_noise_is_scaled_by_the_mean_influence(vit, images, generator):
    noise = torch.randn(1, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    clean = vit(images).detach()
    matched = match_influence(vit, images, noise, clean, EPS)
    mean = influence(vit(images, scale_noise(noise, matched.scale)), clean).mean()
    assert matched.scale.shape == (1,)
    assert 0.8 * EPS <= mean < EPS


def test_noise_without_influence_stays_below_eps(images):
    vit = linear_vit()
    noise = torch.zeros(6, *vit.noise_shape(), dtype=torch.float64)
    matched = match_influence(vit, images, noise, vit(images).detach(), EPS)
    assert (matched.influence == 0).all()


def sources():
    universal = UniversalNoise(init_scale=0.5, eps=EPS).double()
    universal.setup(tiny_vit().double())
    universal.noise.copy_(torch.full_like(universal.noise, 0.3))
    return {"per_image": REFERENCE, "universal": universal}


@pytest.mark.parametrize("reference", ["per_image", "universal"])
@pytest.mark.parametrize("match", ["init", "norm", "influence"])
def test_random_noise_matches_its_reference(vit, images, reference, match):
    """A multiple of the noise that the reference starts from: itself, or scaled to a norm or an influence."""
    reference = sources()[reference]
    result = RandomNoise(reference, match=match)(vit, images, generator=make_generator("cpu", 3))
    generator = make_generator("cpu", 3)
    start = reference.start(vit, images, generator)
    if match == "init":
        scale = torch.ones(len(start), dtype=torch.float64)
    elif match == "norm":
        other = reference(vit, images, generator=generator).noise
        scale = root_mean_square(other) / root_mean_square(start)
    else:
        scale = match_influence(vit, images, start, vit(images).detach(), EPS).scale
    torch.testing.assert_close(result.noise, scale_noise(start, scale))
    torch.testing.assert_close(result.logits, vit(images, result.noise))
    assert result.logits.requires_grad
    if match == "influence":
        mean = result.influence_after if len(start) > 1 else result.influence_after.mean()
        assert (mean >= 0.7 * EPS).all()
        assert result.converged.all()


def test_names_tell_the_controls_apart():
    names = [RandomNoise(REFERENCE, match=match).name for match in ("norm", "influence", "init")]
    assert names == ["random_noise", "random_noise_influence", "random_noise_init"]
