"""Random noise as a control, and scaling to an influence against the closed form of a linear model."""

import pytest
import torch

from nsaug.nullspace import NullspaceNoise, RandomNoise, UniversalNoise, influence, match_influence
from nsaug.nullspace.controls import MAX_SCALE
from nsaug.nullspace.noise import root_mean_square, scale_noise
from nsaug.utils.errors import UserError
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


@pytest.mark.parametrize("size", [0.3, 1.0, 1e3])
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


def test_scale_never_decreases_once_below_eps(vit, images, generator):
    """More forwards find a scale that is at least as large, also if the first one is just below eps."""
    noise = torch.randn(6, *vit.noise_shape(), generator=generator, dtype=torch.float64)
    clean = vit(images).detach()
    close = scale_noise(noise, match_influence(vit, images, noise, clean, EPS, num_steps=20).scale * 0.999)
    for num_steps in (1, 2, 10):
        assert (match_influence(vit, images, close, clean, EPS, num_steps=num_steps).scale >= 1).all()


def test_noise_is_not_scaled_without_bound(vit, images):
    tiny = 1e-9 * torch.ones(6, *vit.noise_shape(), dtype=torch.float64)
    assert match_influence(vit, images, tiny, vit(images).detach(), EPS, num_steps=40).scale.max() == MAX_SCALE


@pytest.mark.parametrize("match", ["init", "norm", "influence"])
def test_random_noise_matches_its_reference(vit, images, match):
    """A multiple of the noise that the reference starts from: itself, or scaled to a norm or an influence."""
    result = RandomNoise(REFERENCE, match=match)(vit, images, generator=make_generator("cpu", 3))
    generator = make_generator("cpu", 3)
    start = REFERENCE.start(vit, images, generator)
    if match == "init":
        scale = torch.ones(len(start), dtype=torch.float64)
    elif match == "norm":
        other = REFERENCE(vit, images, generator=generator).noise
        scale = root_mean_square(other) / root_mean_square(start)
    else:
        scale = match_influence(vit, images, start, vit(images).detach(), EPS).scale
        assert (result.influence_after >= 0.7 * EPS).all()
        assert result.converged.all()
    torch.testing.assert_close(result.noise, scale_noise(start, scale))
    torch.testing.assert_close(result.logits, vit(images, result.noise))
    assert result.logits.requires_grad


@pytest.mark.parametrize("match", ["init", "norm", "influence"])
def test_beside_universal_noise_one_direction_is_drawn_per_epoch(vit, images, match):
    source = RandomNoise(UniversalNoise(init_scale=0.5, eps=EPS, data_fraction=1.0), match=match).double()
    source.setup(vit)
    source.start_epoch(vit, lambda *_: iter([images]), 1, make_generator("cpu", 1), lambda value: value)
    first, second = (source(vit, batch, generator=make_generator("cpu", 5)).noise for batch in (images, images[:3]))
    directions = torch.stack([noise.flatten() / noise.norm() for noise in (first, second, source.epoch_start)])
    torch.testing.assert_close(directions, directions[:1].expand(3, -1))
    if match == "norm":
        torch.testing.assert_close(first.norm(), source.reference.noise.norm())
    else:
        assert source.reference.noise.norm() == 0, "learning the reference would be wasted"


def test_influence_is_matched_in_eval_mode(images):
    """With drop path the logits that a method passes are random: they are no reference for the influence."""
    vit = tiny_vit(drop_path_rate=0.5).double().train()
    with torch.random.fork_rng():
        clean = vit(images).detach()
        result = RandomNoise(REFERENCE, match="influence")(vit, images, None, clean, make_generator("cpu", 3))
    assert vit.training
    assert (result.influence_after >= 0.7 * EPS).all()
    assert result.converged.all()


def test_source_without_a_start_is_refused():
    with pytest.raises(UserError, match="has no method start"):
        RandomNoise(object())


def test_names_tell_the_controls_apart():
    names = [RandomNoise(REFERENCE, match=match).name for match in ("norm", "influence", "init")]
    assert names == ["random_noise", "random_noise_influence", "random_noise_init"]
