"""Every method on a linear model with two classes, where its loss has a closed form.

The logit z = f(x)_1 - f(x)_0 is linear: z(x + d) = z(x) + w·d, and noise v on the patch embeddings adds a·v.
"""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import FGSMRS, PGD
from nsaug.methods import TRADES, AdversarialTraining, Clean, Nullspace, RandomNoise, TwoViews
from nsaug.methods.trades import START_STD
from nsaug.nullspace import NoiseSynthesis
from nsaug.utils.rng import make_generator as draws
from tests.conftest import linear_vit

EPS = 0.05
SYNTHESIS = NoiseSynthesis(limit=2.0, eps=0.01, lr=0.1, steps=1)


@pytest.fixture
def vit():
    return linear_vit().train()


@pytest.fixture
def images():
    """Away from 0 and 1, so that no attack is cut off there."""
    return 0.4 + 0.2 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 1, 0, 1, 0])


def logit(vit, images, noise=None):
    logits = vit(images, noise)
    return (logits[:, 1] - logits[:, 0]).detach()


def slopes(vit, images):
    """w, the logit's gradient to an image, and a, its gradient to the patch embeddings."""
    image, noise = images[:1].clone().requires_grad_(), torch.zeros(1, *vit.noise_shape(), dtype=torch.float64)
    logits = vit(image, noise.requires_grad_())
    return torch.autograd.grad(logits[0, 1] - logits[0, 0], (image, noise))


def cross_entropy(z, labels):
    return F.softplus(torch.where(labels == 1, -z, z)).mean()


def loss_of(method, vit, images, labels):
    method.double().prepare(vit, images, lambda value: value)
    loss, values = method.loss(vit, images, labels, draws("cpu", 0))
    return loss.detach(), values


def test_clean(vit, images, labels):
    loss, values = loss_of(Clean(), vit, images, labels)
    torch.testing.assert_close(loss, cross_entropy(logit(vit, images), labels))
    assert values["top1"] == ((logit(vit, images) > 0).long() == labels).double().mean()


def test_two_views(vit, images, labels):
    loss, _ = loss_of(TwoViews(), vit, torch.stack([images, 1 - images], 1), labels)
    expected = cross_entropy(logit(vit, images), labels) + cross_entropy(logit(vit, 1 - images), labels)
    torch.testing.assert_close(loss, expected)


def test_pgd_moves_the_logit_by_eps_times_the_slope_l1_norm(vit, images, labels):
    loss, values = loss_of(AdversarialTraining(PGD(eps=EPS, num_steps=3)), vit, images, labels)
    w, _ = slopes(vit, images)
    worst = logit(vit, images) + torch.where(labels == 1, -1, 1) * EPS * w.abs().sum()
    torch.testing.assert_close(loss, cross_entropy(worst, labels))
    assert values["adv_top1"] == ((worst > 0).long() == labels).double().mean()


def test_fgsm_rs_steps_from_its_draw_and_stays_in_the_ball(vit, images, labels):
    loss, _ = loss_of(AdversarialTraining(FGSMRS(eps=EPS, alpha_ratio=1.25)), vit, images, labels)
    w, _ = slopes(vit, images)
    draw = 2 * torch.rand(images.shape, generator=draws("cpu", 0), dtype=torch.float64) - 1
    grad = torch.where(labels == 1, -1, 1).view(-1, 1, 1, 1) * w.sign()
    change = EPS * (draw + 1.25 * grad).clamp(-1, 1)
    expected = logit(vit, images) + (w * change).sum((1, 2, 3))
    torch.testing.assert_close(loss, cross_entropy(expected, labels))


@pytest.mark.parametrize("random_start", [False, True])
def test_trades_adds_the_divergence_at_the_ball_edge(vit, images, labels, random_start):
    attack = PGD(eps=EPS, num_steps=4, step_size=EPS, random_start=random_start)
    loss, values = loss_of(TRADES(attack, beta=3.0), vit, images, labels)
    w, _ = slopes(vit, images)
    if random_start:
        start = EPS * (2 * torch.rand(images.shape, generator=draws("cpu", 0), dtype=torch.float64) - 1)
    else:
        start = START_STD * torch.randn(images.shape, generator=draws("cpu", 0), dtype=torch.float64)
    away = (w * start).sum((1, 2, 3)).sign()  # the divergence grows to the side that the start lies on
    z = logit(vit, images)
    moved = z + away * EPS * w.abs().sum()
    clean, attacked = (torch.distributions.Bernoulli(logits=each) for each in (z, moved))
    apart = torch.distributions.kl_divergence(clean, attacked).mean()
    torch.testing.assert_close(values["divergence"], apart)
    torch.testing.assert_close(loss, cross_entropy(z, labels) + 3.0 * apart)


def test_random_noise_as_it_starts(vit, images, labels):
    method = RandomNoise(SYNTHESIS, match="start")
    loss, values = loss_of(method, vit, images, labels)
    _, a = slopes(vit, images)
    shape = (6, *vit.noise_shape())
    noise = 2.0 * method.rms * (2 * torch.rand(shape, generator=draws("cpu", 0), dtype=torch.float64) - 1)
    z = logit(vit, images)
    noisy = z + (a * noise).sum((1, 2))
    torch.testing.assert_close(loss, cross_entropy(z, labels) + cross_entropy(noisy, labels))
    torch.testing.assert_close(values["influence"], (2 * (noisy.sigmoid() - z.sigmoid()).square()).mean())


def test_random_noise_of_the_influence_eps(vit, images, labels):
    loss, values = loss_of(RandomNoise(SYNTHESIS, match="influence"), vit, images, labels)
    assert values["matched"] == 1
    assert 0.9 * SYNTHESIS.eps <= values["influence"] < SYNTHESIS.eps
    # Each image's probability moves by sqrt(ε / 2), less a twentieth, to the side of its noise.
    z = logit(vit, images)
    _, a = slopes(vit, images)
    draw = 2 * torch.rand((6, *vit.noise_shape()), generator=draws("cpu", 0), dtype=torch.float64) - 1
    side = (a * draw).sum((1, 2)).sign()
    below, above = (z.sigmoid() + side * (share * SYNTHESIS.eps / 2) ** 0.5 for share in (0.9, 1.0))
    ends = torch.stack([F.binary_cross_entropy(p, labels.double(), reduction="none") for p in (below, above)])
    clean = cross_entropy(z, labels)
    assert clean + ends.amin(0).mean() <= loss <= clean + ends.amax(0).mean()


@pytest.mark.parametrize("of", ["logits", "kl"])
@pytest.mark.parametrize("unreached", ["keep", "drop"])
def test_consistency_adds_the_distance_of_the_answers(vit, images, labels, of, unreached):
    synthesis = dataclasses.replace(SYNTHESIS, steps=0, eps=0.05)
    method = Nullspace(synthesis, unreached, consistency=3.0, consistency_of=of)
    loss, values = loss_of(method, vit, images, labels)
    without, _ = loss_of(Nullspace(synthesis, unreached), vit, images, labels)
    start = 2 * torch.rand((6, *vit.noise_shape()), generator=draws("cpu", 0), dtype=torch.float64) - 1
    noise = 2.0 * method.rms * start
    clean, noisy = vit(images), vit(images, noise)
    if of == "logits":
        apart = (noisy - clean).square().sum(1)
    else:
        apart = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=z) for z in (clean, noisy)))
    moved = 2 * (logit(vit, images, noise).sigmoid() - logit(vit, images).sigmoid()).square()
    if unreached == "drop":
        assert 0 < (moved < 0.05).sum() < 6, "both kinds of images are in the batch"
        apart = apart * (moved < 0.05)
    torch.testing.assert_close(values["inconsistency"], apart.mean().detach())
    torch.testing.assert_close(loss, (without + 3.0 * apart.mean()).detach())


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_random_noise_of_the_nullspace_noise_norm(vit, images, labels, scope):
    synthesis = dataclasses.replace(SYNTHESIS, scope=scope, eps=1e-9, steps=5, weight_decay=0.5)
    method = RandomNoise(synthesis, match="norm")
    loss, values = loss_of(method, vit, images, labels)
    rng = draws("cpu", 0)
    start = synthesis.start(vit, images, rng, method.rms)
    found = synthesis.refine(vit, images, rng, rms=method.rms)
    norm = start.flatten(1).square().mean(1).sqrt()
    assert (found.norm_after < 0.95 * found.norm_before).all(), "the norms to match are not the start's"
    noise = start * (found.norm_after / norm).view(-1, 1, 1)
    _, a = slopes(vit, images)
    z = logit(vit, images)
    torch.testing.assert_close(loss, cross_entropy(z, labels) + cross_entropy(z + (a * noise).sum((1, 2)), labels))
    torch.testing.assert_close(values["noise_rms"], found.norm_after.square().mean().sqrt())


def test_nullspace_noise_after_one_step(vit, images, labels):
    """AdamW's first step is lr times the sign of the gradient of |A v|, after the decay."""
    method = Nullspace(SYNTHESIS)
    loss, _ = loss_of(method, vit, images, labels)
    weight = vit.model.head.weight.detach()
    start = 2 * torch.rand((6, *vit.noise_shape()), generator=draws("cpu", 0), dtype=torch.float64) - 1
    unit = 2.0 * method.rms
    z = logit(vit, images)
    _, a = slopes(vit, images)
    gradient = ((unit * start).flatten(1) @ weight.T @ weight).view_as(start)
    stepped = start * (1 - SYNTHESIS.lr * SYNTHESIS.weight_decay) - SYNTHESIS.lr * gradient.sign()
    influence = 2 * ((z + unit * (a * start).sum((1, 2))).sigmoid() - z.sigmoid()).square()
    noise = unit * torch.where((influence < SYNTHESIS.eps).view(-1, 1, 1), start, stepped)
    expected = cross_entropy(z, labels) + cross_entropy(z + (a * noise).sum((1, 2)), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
