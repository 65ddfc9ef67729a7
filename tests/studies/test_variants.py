"""studies/variants.py: each variant does what its name says."""

import pytest
import torch
from torch.nn import functional as F

from nsaug.nullspace import NullspaceNoise, embedding_rms, synthesize
from nsaug.nullspace.per_image import MAX_STEP
from nsaug.utils.rng import make_generator
from tests.conftest import ROOT, linear_vit, tiny_vit


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    import variants

    return variants


def norms(noise):
    return noise.flatten(1).norm(dim=1)


def test_without_a_change_it_is_the_default(variants, vit, images):
    noise = variants.VariantNoise(eps=0.1)
    expected = synthesize(vit, images, NullspaceNoise(eps=0.1), generator=make_generator("cpu", 0))
    result = noise(vit, images, generator=make_generator("cpu", 0))
    torch.testing.assert_close(result.noise, expected.noise)
    torch.testing.assert_close(result.influence_before, expected.influence_before)
    torch.testing.assert_close(result.influence_after, expected.influence_after)
    torch.testing.assert_close(result.logits, expected.logits)


def test_noise_on_the_image(variants, vit, images):
    noise = variants.VariantNoise(eps=0.01, space="image", init_scale=2.0, num_steps=6)
    result = noise(vit, images, generator=make_generator("cpu", 0))
    assert result.noise.shape == images.shape
    torch.testing.assert_close(result.logits, vit((images + result.noise).clamp(0, 1)))
    assert (result.influence_after < 0.01).sum() >= 5
    assert result.influence_after.median() > 0.002
    start = noise.start(vit, images, make_generator("cpu", 0))
    assert start.abs().max() < 2 / 255 < 1.05 * start.abs().max()


def test_linf_step_solves_the_linearized_equation_with_the_smallest_largest_change(variants):
    torch.manual_seed(0)
    noise, gradient = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    phi = torch.tensor([0.2, 0.3, 0.01, 0.2], dtype=torch.float64)
    target = torch.tensor([0.19, 0.31, 0.9, 0.2], dtype=torch.float64)
    gradient[2] *= 1e-3  # far from its target: the step is cut
    change = variants.newton_step_linf(noise, gradient, phi, target) - noise
    largest = change.flatten(1).abs().amax(1)
    torch.testing.assert_close(largest[2], MAX_STEP * noise[2].abs().max())
    moved = phi.log() + (change * gradient).sum((1, 2)) / phi
    torch.testing.assert_close(moved[[0, 1, 3]], target.log()[[0, 1, 3]])
    assert largest[3] < 1e-12
    change = variants.newton_step_linf(noise, gradient, phi, target, logarithmic=False) - noise
    moved = phi + (change * gradient).sum((1, 2))
    torch.testing.assert_close(moved[[0, 1, 3]], target[[0, 1, 3]])
    l2 = variants.newton_step(noise, gradient, phi, target) - noise
    assert (largest <= l2.flatten(1).abs().amax(1)).all()


def test_reachable_noise_is_what_an_image_causes(variants, images):
    """The patch embedding has 12 inputs and 24 outputs: some change of the image causes the noise."""
    vit = tiny_vit().double()
    result = variants.VariantNoise(eps=0.01, reachable=True)(vit, images, generator=make_generator("cpu", 0))
    weight = vit.patch_embed.proj.weight.flatten(1)
    solution = torch.linalg.lstsq(weight, result.noise.flatten(0, 1).T).solution
    torch.testing.assert_close((weight @ solution).T, result.noise.flatten(0, 1), atol=1e-9, rtol=1e-6)
    other = variants.VariantNoise(eps=0.01)(vit, images, generator=make_generator("cpu", 0)).noise.flatten(0, 1)
    assert (weight @ torch.linalg.lstsq(weight, other.T).solution - other.T).norm() > 0.5 * other.norm()


def test_ramp_raises_the_bound(variants, vit, images):
    noise = variants.VariantNoise(eps=0.2, init_scale=0.5, num_steps=6, ramp_steps=4)
    medians = [noise(vit, images, generator=make_generator("cpu", 0)).influence_after.median() for _ in range(5)]
    levels = [0.6 * 0.2 * fraction for fraction in (0.25, 0.5, 0.75, 1, 1)]
    torch.testing.assert_close(torch.stack(medians), torch.tensor(levels).double(), rtol=0.2, atol=0)


def test_ranges_are_drawn_for_each_image(variants, vit, images):
    noise = variants.VariantNoise(eps=0.001, eps_max=1.0, init_scale=0.01, init_scale_max=1.0)
    start = noise.start(vit, images, make_generator("cpu", 0))
    sizes = start.flatten(1).abs().amax(1) / embedding_rms(vit, images)
    assert sizes.min() < 0.1 < 0.3 < sizes.max() < 1
    draws = variants.log_uniform(0.001, 1.0, 10_000, make_generator("cpu", 0), images)
    assert 0.001 <= draws.min() < draws.max() <= 1
    assert draws.log10().mean() == pytest.approx(-1.5, abs=0.03)


@pytest.mark.parametrize("direction", ["random", "descended", "ascended", "ascended_ce"])
def test_directions_have_the_same_influence(variants, vit, images, labels, direction):
    noise = variants.DirectedNoise(eps=0.1, direction=direction)
    result = noise(vit, images, labels, generator=make_generator("cpu", 0))
    assert (result.influence_after < 0.1).all()
    assert result.influence_after.median() > 0.08
    assert noise.cost == pytest.approx((1 + (0 if direction == "random" else 6) + variants.NUM_BISECTIONS) / 3)


def test_ascents_need_the_smallest_noise_for_the_same_influence(variants, vit, images, labels):
    sizes = {}
    for direction in ("random", "descended", "ascended"):
        noise = variants.DirectedNoise(eps=0.05, direction=direction)
        sizes[direction] = norms(noise(vit, images, labels, generator=make_generator("cpu", 0)).noise).mean()
    assert sizes["ascended"] < 0.7 * min(sizes["random"], sizes["descended"])


def test_ascent_with_labels_raises_the_loss(variants, vit, images, labels):
    losses = {}
    for direction in ("random", "ascended_ce"):
        noise = variants.DirectedNoise(eps=0.1, direction=direction)
        result = noise(vit, images, labels, generator=make_generator("cpu", 0))
        losses[direction] = F.cross_entropy(result.logits, labels)
    assert losses["ascended_ce"] > losses["random"]


def bernoulli(logits):
    return torch.distributions.Bernoulli(logits=(logits[:, 1] - logits[:, 0]).detach())


@pytest.mark.parametrize("name", ["NoiseConsistency", "UncertaintyUnderNoise"])
def test_losses(variants, images, name):
    vit, labels = linear_vit(), torch.tensor([0, 1, 1, 0, 1, 0])
    noise = NullspaceNoise(eps=0.1)
    method = getattr(variants, name)(noise, weight=3.0)
    loss, metrics = method.loss(vit, images, labels, make_generator("cpu", 0))
    result = noise(vit, images, generator=make_generator("cpu", 0))
    clean, noisy = bernoulli(vit(images)), bernoulli(result.logits)
    reference = clean if name == "NoiseConsistency" else torch.distributions.Bernoulli(0.5)
    divergence = torch.distributions.kl_divergence(reference, noisy).mean()
    torch.testing.assert_close(loss.detach(), F.cross_entropy(vit(images), labels).detach() + 3.0 * divergence)
    assert metrics["influence"] == result.influence_after.mean()
    assert method.cost == 5 / 3 + noise.cost
