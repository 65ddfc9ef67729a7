"""Newton's method towards a level set of the influence."""

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import matches_eval_mode
from nsaug.nullspace import NullspaceNoise, embedding_rms, influence, synthesize
from nsaug.nullspace.per_image import LEVEL, MAX_STEP, newton_step
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from tests.conftest import linear_vit, tiny_vit

CONFIG = NullspaceNoise(eps=0.02, init_scale=0.5, num_steps=3)
SCOPES = ["per_image", "per_batch"]


def run(vit, images, config=CONFIG, **kwargs):
    return synthesize(vit, images, config, generator=make_generator("cpu", 7), **kwargs)


def rederive(vit, images, config):
    """The algorithm again in plain float64: one group at a time, squared distances instead of norms."""
    groups = images.split(1) if config.scope == "per_image" else [images]
    shape = (len(groups), *vit.noise_shape(config.layer))
    rms = vit.activations(images, config.layer).detach().pow(2).mean().sqrt()
    start = config.init_scale * rms * (2 * torch.rand(shape, generator=make_generator("cpu", 7), dtype=rms.dtype) - 1)
    noises, cut = [], 0
    for group, noise in zip(groups, start.split(1), strict=True):
        clean = vit(group).detach().softmax(1)
        for step in range(config.num_steps):
            noise = noise.detach().requires_grad_()
            bounded = (vit(group, noise, config.layer).softmax(1) - clean).pow(2).sum(1).mean()
            (gradient,) = torch.autograd.grad(bounded, noise)  # of phi^2; that of phi is gradient / (2 phi)
            phi, before = float(bounded.detach()) ** 0.5, noise.detach()
            slope = gradient / (2 * phi)
            change = phi * math.log(phi / math.sqrt(LEVEL * config.eps)) * slope / slope.pow(2).sum()
            if change.norm() > MAX_STEP * before.norm():
                change, cut = change * MAX_STEP * before.norm() / change.norm(), cut + 1
            noise = before - change
            if step + 1 == config.num_steps and phi**2 >= config.eps:
                noise = noise * math.sqrt(LEVEL * config.eps) / phi
        noises.append(noise.detach())
    return torch.cat(noises), cut


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_steps": 0}, {"num_steps": 1}, {"eps": 1e-4}, {"eps": 1.0, "init_scale": 0.05}, {"layer": "blocks.1"}],
)
def test_matches_rederivation(vit, images, scope, settings):
    config = dataclasses.replace(CONFIG, scope=scope, **settings)
    noise, _ = rederive(vit, images, config)
    torch.testing.assert_close(run(vit, images, config).noise, noise, atol=1e-9, rtol=1e-7)


def test_rederivation_covers_all_cases(vit, images):
    """Steps that are cut and steps that are not, noise that is shrunk and noise that is not."""
    small = dataclasses.replace(CONFIG, init_scale=0.02)
    assert rederive(vit, images, small)[1] > 0
    assert rederive(vit, images, dataclasses.replace(CONFIG, eps=1.0, init_scale=2.0))[1] == 0
    start = run(vit, images, dataclasses.replace(CONFIG, num_steps=0)).influence_after
    assert (start >= CONFIG.eps).any()
    assert (start < CONFIG.eps).any()


def test_single_step_reaches_the_closed_form_of_a_linear_model(images):
    """Two classes, logit z + a.v: phi = sqrt(2) |p' - p|, with gradient sqrt(2) p' (1 - p') a."""
    vit = linear_vit()
    config = NullspaceNoise(eps=0.02, init_scale=0.3, num_steps=1)
    start = run(vit, images, dataclasses.replace(config, num_steps=0)).noise
    zero = torch.zeros(1, *vit.noise_shape(), dtype=torch.float64, requires_grad=True)
    logits = vit(images[:1], zero)
    (a,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], zero)
    clean, noisy = (vit(images, noise).detach() for noise in (None, start))
    p, q = ((logits[:, 1] - logits[:, 0]).sigmoid() for logits in (clean, noisy))
    phi = 2**0.5 * (q - p).abs()
    slope = 2**0.5 * q * (1 - q) * (q - p).sign()
    step = phi * (phi / (LEVEL * config.eps) ** 0.5).log() / (slope * a.square().sum())
    cut = (step.abs() * a.norm()).clamp(max=MAX_STEP * start.flatten(1).norm(dim=1)) / a.norm()
    expected = start - (step.sign() * cut).view(-1, 1, 1) * a
    expected = expected * torch.where(phi**2 >= config.eps, (LEVEL * config.eps) ** 0.5 / phi, 1.0).view(-1, 1, 1)
    torch.testing.assert_close(run(vit, images, config).noise, expected)


def test_newton_step_solves_an_exponential_exactly(generator):
    """For phi = exp(g.v) one step along the gradient reaches the target; noise without a gradient stays."""
    noise = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) * 10
    slope = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    slope[2] = 0
    phi = torch.tensor([0.5, 0.01, 0.3], dtype=torch.float64)
    change = newton_step(noise, slope * phi.view(-1, 1, 1), phi, 0.1) - noise
    reached = phi * (slope * change).sum((1, 2)).exp()
    torch.testing.assert_close(reached[:2], torch.full((2,), 0.1, dtype=torch.float64))
    cosine = F.cosine_similarity(change.flatten(1), slope.flatten(1))[:2]
    torch.testing.assert_close(cosine, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert (change[2] == 0).all()
    far = newton_step(noise, slope * 1e-9, phi, 0.1) - noise
    torch.testing.assert_close(far[:2].flatten(1).norm(dim=1), MAX_STEP * noise[:2].flatten(1).norm(dim=1))
    assert newton_step(noise, slope, torch.zeros_like(phi), 0.1).isfinite().all()


@pytest.mark.parametrize("eps", [0.01, 0.03, 0.1, 0.3])
def test_default_noise_is_below_eps(eps):
    """The promise of the name, at the default settings; benchmarks/convergence.py shows it on real models."""
    vit = tiny_vit().double()
    images = torch.rand(128, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = run(vit, images, NullspaceNoise(eps=eps))
    assert result.converged.double().mean() >= 0.9
    assert result.influence_after.mean() <= max(float(result.influence_before.mean()), eps)
    assert result.influence_after.median() > 0.2 * eps


def test_influence_is_of_the_start_and_of_the_result(vit, images):
    result = run(vit, images)
    start = run(vit, images, dataclasses.replace(CONFIG, num_steps=0))
    with torch.no_grad():
        measured = influence(vit(images, result.noise), vit(images))
    torch.testing.assert_close(result.influence_after, measured)
    torch.testing.assert_close(result.influence_before, start.influence_after)
    assert torch.equal(result.converged, measured < CONFIG.eps)


def test_per_batch_noise_is_shared_and_bounded_in_the_mean(vit, images):
    result = run(vit, images, dataclasses.replace(CONFIG, scope="per_batch", num_steps=6))
    assert result.noise.shape == (1, *vit.noise_shape())
    assert result.influence_after.mean() < CONFIG.eps
    assert result.converged.tolist() == [True] * 6


def test_image_does_not_depend_on_its_neighbors(vit, images):
    rms = embedding_rms(vit, images)
    together = run(vit, images, rms=rms)
    torch.testing.assert_close(together.noise[:1], run(vit, images[:1], rms=rms).noise)


def test_start_is_uniform_in_multiples_of_rms(vit, images):
    noise = run(vit, images, NullspaceNoise(init_scale=3.0, num_steps=0)).noise
    rms = embedding_rms(vit, images)
    assert noise.abs().max() <= 3 * rms
    torch.testing.assert_close(noise.std(), 3 * rms / 3**0.5, rtol=0.05, atol=0)


def test_model_and_generators_are_unchanged(vit, images):
    vit.train()
    vit.model.blocks[0].eval()
    modes = [part.training for part in vit.modules()]
    for parameter in vit.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    state = torch.get_rng_state()
    run(vit, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all((parameter.grad == 0.25).all() and parameter.requires_grad for parameter in vit.parameters())
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert [part.training for part in vit.modules()] == modes


def test_cost_is_one_forward_per_step_and_one_for_the_loss(vit, images):
    """The graph of the last forward is the one that the loss needs."""
    with torch.no_grad():
        clean = vit(images)
    forwards = []
    vit.model.blocks[0].register_forward_hook(lambda *_: forwards.append(1))
    result = run(vit, images, clean_logits=clean)
    assert len(forwards) == CONFIG.num_steps + 1
    gradients = torch.autograd.grad(result.logits.sum(), list(vit.parameters()))
    expected = torch.autograd.grad(vit(images, result.noise).sum(), list(vit.parameters()))
    torch.testing.assert_close(gradients, expected)


def test_works_without_gradients(vit, images):
    with torch.no_grad():
        result = run(vit, images)
    assert not result.logits.requires_grad
    torch.testing.assert_close(result.noise, run(vit, images).noise)


@pytest.mark.parametrize(
    "options",
    [{"drop_path_rate": 0.5}, {"args": {"drop_rate": 0.5, "depth": 2, "embed_dim": 24, "num_heads": 2}}],
)
def test_dropout_is_off_during_synthesis_and_on_for_the_loss(options, images):
    vit = tiny_vit(**options).double().train()
    assert not matches_eval_mode(vit)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = run(vit, images)
        torch.manual_seed(0)
        expected = vit(images, result.noise)
    torch.testing.assert_close(result.logits, expected)
    vit.eval()
    assert matches_eval_mode(vit)
    torch.testing.assert_close(result.noise, run(vit, images).noise)
    with torch.no_grad():
        torch.testing.assert_close(result.influence_after, influence(vit(images, result.noise), vit(images)))


def test_only_the_forward_of_the_loss_updates_running_statistics():
    torch.manual_seed(0)
    vit = build_vit("xcit_nano_12_p16_224", num_classes=4, img_size=32, args={"depth": 1}).train()
    images = torch.rand(2, 3, 32, 32)
    counters = [value for name, value in vit.named_buffers() if "num_batches_tracked" in name]
    assert counters
    run(vit, images)
    assert {int(counter) for counter in counters} == {1}


@pytest.mark.parametrize("options", [{}, {"drop_path_rate": 1e-9}])
def test_weights_get_their_gradients_under_autocast(options, images, labels):
    """Autocast caches casts of the weights; one made without gradients must not serve the forward that needs them."""
    vit = tiny_vit(**options).train()
    images = images.float()

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(run(vit, images).logits, labels)
        return torch.autograd.grad(loss, list(vit.parameters()))

    for half, full in zip(gradients(True), gradients(False), strict=True):
        assert (half - full).norm() < 0.25 * full.norm() + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "greater than 0"),
        ({"eps": 2}, "less than 2"),
        ({"init_scale": 0}, "greater than 0"),
        ({"num_steps": -1}, "greater than or equal to 0"),
        ({"scope": "epoch"}, "'per_image' or 'per_batch'"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        NullspaceNoise(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:0], "batch is empty"),
        (lambda images: images * 2 - 1, r"expected \[0, 1\], not normalized"),
        (lambda images: torch.where(images > 0.5, torch.nan, images), "from nan to nan"),
        (lambda images: images[0], r"images have shape \(3, 8, 8\)"),
    ],
)
def test_invalid_images_are_refused(vit, images, change, message):
    with pytest.raises(UserError, match=message):
        run(vit, change(images))


def test_unknown_layer_is_refused(vit, images):
    with pytest.raises(UserError, match=r"blocks.7.*patch_embed, blocks.0, blocks.1"):
        run(vit, images, dataclasses.replace(CONFIG, layer="blocks.7"))
