import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from nsaug.models.factory import build_vit
from nsaug.nullspace import NoiseSynthesis, computes_as_eval, embedding_rms, influence
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator as draws
from tests.conftest import tiny_vit

EASY = NoiseSynthesis(limit=1.0, eps=0.01, steps=5, lr=0.03)


def rederived(vit, images, synthesis):
    """The algorithm written down again: plain float64, one image or batch at a time, AdamW by its formulas."""
    groups = [images[i : i + 1] for i in range(len(images))] if synthesis.scope == "sample" else [images]
    # The draws are the batch's; the loop is each group's own.
    shape = (len(groups), *vit.noise_shape(synthesis.layer))
    drawn = torch.rand(shape, generator=draws("cpu", 7), dtype=torch.float64) * 2 - 1
    rms = vit.activations(images, synthesis.layer).detach().square().mean().sqrt()
    found, converged, most = [], [], 0
    for group, start in zip(groups, drawn, strict=True):
        target = vit(group).detach()
        if synthesis.units == "relative":
            unit, z, lr = synthesis.limit * rms, start[None].clone(), synthesis.lr
        else:
            unit, z, lr = 1.0, start[None] * synthesis.limit, synthesis.lr
        m, s, good = torch.zeros_like(z), torch.zeros_like(z), None
        for k in range(1, synthesis.steps + 2):
            z = z.detach().requires_grad_()
            logits = vit(group, z * unit, synthesis.layer)
            now = float((logits.softmax(1) - target.softmax(1)).detach().square().sum(1).mean())
            below = now < synthesis.eps
            fine = synthesis.floor * synthesis.eps <= now < synthesis.eps
            if k == synthesis.steps + 1 or (fine and synthesis.growth == 1):
                break
            most = max(most, k)
            (g,) = torch.autograd.grad((logits - target).square().sum(1).sqrt().mean(), z)
            g = -g if now < synthesis.floor * synthesis.eps else g
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
            good = z.detach() if fine else good
            if synthesis.growth > 1 and k == synthesis.steps and good is not None:
                z = good
                continue
            if fine:
                z = z.detach() * synthesis.growth
                continue
            before = z.detach().norm()
            z = z.detach() * (1 - lr * synthesis.weight_decay)
            z = z - lr * (m / (1 - 0.9**k)) / ((s / (1 - 0.999**k)).sqrt() + 1e-8)
            if synthesis.norm == "held":
                z = z * before / z.norm()
        found.append((z * unit).detach())
        converged += [below] * len(group)
    return torch.cat(found), converged, most


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"units": "absolute", "lr": 0.02, "limit": 0.5},
        {"eps": 1e-6},
        {"eps": 1.9},
        {"lr": 0.2},
        {"norm": "held", "lr": 0.1},
        {"growth": 1.3, "steps": 8},
        {"growth": 1.5, "norm": "held", "steps": 6},
        {"floor": 0.5, "limit": 0.5},
        {"floor": 0.4, "growth": 1.2, "steps": 8},
        {"layer": "blocks.1"},
        {"layer": "blocks.0", "norm": "held"},
    ],
)
def test_against_a_plain_rederivation(vit, images, scope, setting):
    synthesis = dataclasses.replace(EASY, scope=scope, **setting)
    found = synthesis.refine(vit, images, draws("cpu", 7))
    noise, converged, steps = rederived(vit, images, synthesis)
    torch.testing.assert_close(found.noise, noise, atol=1e-9, rtol=1e-7)
    assert found.converged.tolist() == converged
    assert found.steps == steps


def test_the_rederivation_meets_every_case(vit, images):
    """Some images finish early and some do not, or the comparison above would show little."""
    found = EASY.refine(vit, images, draws("cpu", 7))
    below_at_once = found.influence_before < EASY.eps
    assert 0 < below_at_once.sum() < len(images)
    assert found.steps > 1


def test_eps_bounds_each_image(vit, images, generator):
    found = dataclasses.replace(EASY, steps=50).refine(vit, images, generator)
    with torch.no_grad():
        measured = influence(vit(images, found.noise), vit(images))
    torch.testing.assert_close(measured, found.influence_after)
    assert found.converged.all()
    assert measured.max() < EASY.eps
    assert found.influence_before.max() > EASY.eps
    assert found.steps < 50, "it stops as soon as every image is below"


def test_eps_bounds_the_mean_in_scope_batch(vit, images, generator):
    eps = 0.02
    found = dataclasses.replace(EASY, steps=50, eps=eps, scope="batch").refine(vit, images, generator)
    assert found.noise.shape == (1, *vit.noise_shape())
    assert found.converged.all()
    assert found.influence_after.mean() < eps < found.influence_before.mean()
    assert found.influence_after.max() > eps, "a mean below eps is all that is asked"


def test_a_finished_image_is_frozen(vit, images):
    found = EASY.refine(vit, images, draws("cpu", 7))
    start = dataclasses.replace(EASY, steps=0).refine(vit, images, draws("cpu", 7))
    finished = found.influence_before < EASY.eps
    assert torch.equal(found.noise[finished], start.noise[finished])
    assert (found.noise - start.noise)[~finished].flatten(1).norm(dim=1).min() > 0


def test_an_image_does_not_depend_on_its_neighbours(vit, images):
    rms = embedding_rms(vit, images)
    together = EASY.refine(vit, images, draws("cpu", 7), rms=rms)
    alone = EASY.refine(vit, images[:1], draws("cpu", 7), rms=rms)
    torch.testing.assert_close(together.noise[:1], alone.noise)


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_refinement_lowers_the_influence(vit, images, scope):
    found = dataclasses.replace(EASY, eps=1e-9, scope=scope).refine(vit, images, draws("cpu", 7))
    assert found.influence_after.mean() < 0.5 * found.influence_before.mean()
    assert found.steps == EASY.steps


def test_a_limit_means_the_same_on_every_scale(vit, images):
    start = dataclasses.replace(EASY, steps=0, limit=3.0)
    found = start.refine(vit, images, draws("cpu", 7))
    rms = embedding_rms(vit, images)
    assert found.noise.abs().max() <= 3 * rms
    torch.testing.assert_close(found.norm_after, (3 * rms / 3**0.5).expand(6), rtol=0.1, atol=0)
    absolute = dataclasses.replace(start, units="absolute").refine(vit, images, draws("cpu", 7))
    torch.testing.assert_close(absolute.noise * rms, found.noise)
    normal = dataclasses.replace(start, init="normal").refine(vit, images, draws("cpu", 7))
    torch.testing.assert_close(normal.noise.std(), found.noise.std(), rtol=0.1, atol=0)


def test_it_leaves_everything_as_it_was(vit, images):
    vit.train()
    for parameter in vit.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    EASY.refine(vit, images, draws("cpu", 7))
    assert torch.equal(torch.rand(3), expected)
    assert all((parameter.grad == 0.25).all() for parameter in vit.parameters())
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert vit.training


def test_it_costs_what_it_claims(vit, images, monkeypatch):
    """One forward per update and one more; gradients to the noise alone; the last forward is the one trained on."""
    forwards = []
    vit.model.patch_embed.register_forward_hook(lambda *_: forwards.append(1))
    with torch.no_grad():
        clean = vit(images)
    synthesis = dataclasses.replace(EASY, eps=1e-9, steps=3)
    forwards.clear()
    found = synthesis.refine(vit, images, draws("cpu", 7), clean_logits=clean, rms=torch.tensor(1.0))
    assert len(forwards) == 4
    torch.testing.assert_close(found.logits, vit(images, found.noise))
    gradients = torch.autograd.grad(found.logits.sum(), list(vit.parameters()))
    expected = torch.autograd.grad(vit(images, found.noise).sum(), list(vit.parameters()))
    torch.testing.assert_close(gradients, expected)


def test_without_gradients_it_works_all_the_same(vit, images):
    with torch.no_grad():
        found = EASY.refine(vit, images, draws("cpu", 7))
    assert not found.logits.requires_grad
    torch.testing.assert_close(found.noise, EASY.refine(vit, images, draws("cpu", 7)).noise)


@pytest.mark.parametrize(
    "options",
    [{"drop_path_rate": 0.5}, {"args": {"drop_rate": 0.5, "depth": 2, "embed_dim": 24, "num_heads": 2}}],
)
def test_with_dropout_it_measures_in_eval_mode(options, images):
    vit = tiny_vit(**options).double().train()
    assert not computes_as_eval(vit)
    found = EASY.refine(vit, images, draws("cpu", 7))
    assert vit.training
    assert found.logits is None
    vit.eval()
    assert computes_as_eval(vit)
    torch.testing.assert_close(found.noise, EASY.refine(vit, images, draws("cpu", 7)).noise)
    with torch.no_grad():
        torch.testing.assert_close(found.influence_after, influence(vit(images, found.noise), vit(images)))


def test_running_statistics_do_not_move():
    torch.manual_seed(0)
    vit = build_vit("xcit_nano_12_p16_224", num_classes=4, img_size=32, args={"depth": 1}).train()
    before = {name: value.clone() for name, value in vit.named_buffers()}
    assert any("running_mean" in name for name in before)
    found = EASY.refine(vit, torch.rand(2, 3, 32, 32), draws("cpu", 7))
    assert all(torch.equal(value, before[name]) for name, value in vit.named_buffers())
    assert found.logits is None


@pytest.mark.parametrize("options", [{}, {"drop_path_rate": 1e-9}])
def test_under_autocast_the_weights_still_get_their_gradients(options, images, labels):
    """Autocast caches casts of the weights; one made without gradients must not serve the forward that needs them."""
    vit = tiny_vit(**options).train()
    images = images.float()

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = dataclasses.replace(EASY, eps=1e-9).refine(vit, images, draws("cpu", 7))
            logits = vit(images, found.noise) if found.logits is None else found.logits
            loss = F.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, list(vit.parameters()))

    for half, full in zip(gradients(True), gradients(False), strict=True):
        assert (half - full).norm() < 0.25 * full.norm() + 1e-6


def test_the_rederivation_meets_every_case_of_the_variants(vit, images):
    """Some images are below the floor, some within, some above ε."""
    synthesis = dataclasses.replace(EASY, floor=0.5, limit=0.5)
    start = dataclasses.replace(synthesis, steps=0).refine(vit, images, draws("cpu", 7)).influence_after
    assert ((start < synthesis.floor * synthesis.eps).any(), (start >= synthesis.eps).any()) == (True, True)
    assert ((start >= synthesis.floor * synthesis.eps) & (start < synthesis.eps)).any()


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_a_held_norm_is_held(vit, images, scope):
    """The free refinement shrinks the noise; the held one lowers the influence by its direction alone."""
    free = dataclasses.replace(EASY, eps=1e-9, steps=20, scope=scope, weight_decay=1.0)
    held = dataclasses.replace(free, norm="held").refine(vit, images, draws("cpu", 7))
    torch.testing.assert_close(held.norm_after, held.norm_before)
    assert held.influence_after.mean() < 0.5 * held.influence_before.mean()
    assert (free.refine(vit, images, draws("cpu", 7)).norm_after < 0.8 * held.norm_after).all()


def test_a_growing_limit_ends_at_the_boundary(vit, images):
    """Each noise ends below ε and near it, larger than it was."""
    small = dataclasses.replace(EASY, limit=0.2, steps=30)
    left = small.refine(vit, images, draws("cpu", 7))
    assert left.steps == 0
    grown = dataclasses.replace(small, growth=1.2).refine(vit, images, draws("cpu", 7))
    assert (grown.norm_after > 1.5 * left.norm_after).all()
    assert grown.influence_after.median() > 0.4 * EASY.eps
    assert grown.influence_after.max() < EASY.eps
    assert grown.converged.all()


def test_a_floor_lifts_the_influence(vit, images):
    low = dataclasses.replace(EASY, limit=0.1, steps=80, lr=0.1)
    lifted = dataclasses.replace(low, floor=0.5).refine(vit, images, draws("cpu", 7))
    assert low.refine(vit, images, draws("cpu", 7)).influence_after.max() < 0.005
    assert lifted.influence_after.min() >= 0.005
    assert lifted.influence_after.max() < EASY.eps
    assert lifted.converged.all()


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_a_warm_start_goes_on_from_the_last_noise(vit, images, scope):
    synthesis = dataclasses.replace(EASY, init="warm", eps=1e-9, scope=scope)
    rms = embedding_rms(vit, images)
    first = synthesis.refine(vit, images[:4], draws("cpu", 7), rms=rms)
    cold = dataclasses.replace(synthesis, init="uniform").refine(vit, images[:4], draws("cpu", 7), rms=rms)
    assert torch.equal(first.noise, cold.noise), "the first batch has nothing to go on from"
    unmoved = dataclasses.replace(synthesis, steps=0).refine(vit, images, last=first.noise, rms=rms)
    again = first.noise[[0, 1, 2, 3, 0, 1]] if scope == "sample" else first.noise
    torch.testing.assert_close(unmoved.noise, again)
    duration_factor = synthesis.refine(vit, images[:4], last=first.noise, rms=rms)
    assert duration_factor.influence_after.mean() < first.influence_after.mean()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eps": 0}, "greater than 0"),
        ({"eps": 2}, "less than 2"),
        ({"limit": 0}, "greater than 0"),
        ({"growth": 0.9}, "greater than or equal to 1"),
        ({"floor": 1}, "less than 1"),
        ({"scope": "epoch"}, "'sample' or 'batch'"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValidationError, match=message):
        NoiseSynthesis(**setting)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: images[:0], "no images in this batch"),
        (lambda images: images * 2 - 1, r"have to lie in \[0, 1\], not normalised"),
        (lambda images: torch.where(images > 0.5, torch.nan, images), "from nan to nan"),
        (lambda images: images[0], r"images have shape \(3, 8, 8\)"),
    ],
)
def test_what_is_no_image_is_refused(vit, images, spoil, message):
    with pytest.raises(UserError, match=message):
        EASY.refine(vit, spoil(images))


def test_an_unknown_site_is_refused(vit, images):
    with pytest.raises(UserError, match=r"takes no noise at blocks.7: choose among patch_embed, blocks.0, blocks.1"):
        dataclasses.replace(EASY, layer="blocks.7").refine(vit, images)
