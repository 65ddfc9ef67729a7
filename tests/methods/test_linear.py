"""All methods on a linear model with two classes, where the loss has a closed form.

The logit z = f(x)_1 - f(x)_0 is linear: z(x + d) = z(x) + w·d, and noise v on the patch embeddings adds a·v.
"""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import FGSMRS, PGD, EmbeddingPGD
from nsaug.methods import (
    R3F,
    SMART,
    TRADES,
    AdversarialTraining,
    AugMix,
    Clean,
    EmbeddingAdversarial,
    FreeLB,
    GaussianNoise,
    NoiseAugmentation,
    TwoViews,
)
from nsaug.methods.smoothness import START_STD as SMART_START_STD
from nsaug.methods.trades import START_STD
from nsaug.nullspace import NullspaceNoise, RandomNoise, embedding_rms
from nsaug.nullspace.per_image import LEVEL, MAX_STEP
from nsaug.utils.rng import make_generator
from tests.conftest import linear_vit

EPS = 0.05
NOISE = NullspaceNoise(init_scale=1.0, eps=0.01, num_steps=1)


@pytest.fixture
def vit():
    return linear_vit().train()


@pytest.fixture
def images():
    """Far enough from 0 and 1 for no attack to be clipped."""
    return 0.4 + 0.2 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 1, 0, 1, 0])


def logit(vit, images, noise=None):
    logits = vit(images, noise)
    return (logits[:, 1] - logits[:, 0]).detach()


def slopes(vit, images):
    """Gradients of the logit: w to an image, a to its patch embeddings."""
    image, noise = images[:1].clone().requires_grad_(), torch.zeros(1, *vit.noise_shape(), dtype=torch.float64)
    logits = vit(image, noise.requires_grad_())
    return torch.autograd.grad(logits[0, 1] - logits[0, 0], (image, noise))


def cross_entropy(z, labels):
    return F.softplus(torch.where(labels == 1, -z, z)).mean()


def loss_of(method, vit, images, labels):
    method.double().setup(vit)
    loss, values = method.loss(vit, images, labels, make_generator("cpu", 0))
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
    loss, _ = loss_of(AdversarialTraining(FGSMRS(eps=EPS, alpha_ratio=1.25), "fgsm_rs"), vit, images, labels)
    w, _ = slopes(vit, images)
    draw = 2 * torch.rand(images.shape, generator=make_generator("cpu", 0), dtype=torch.float64) - 1
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
        start = EPS * (2 * torch.rand(images.shape, generator=make_generator("cpu", 0), dtype=torch.float64) - 1)
    else:
        start = START_STD * torch.randn(images.shape, generator=make_generator("cpu", 0), dtype=torch.float64)
    away = (w * start).sum((1, 2, 3)).sign()  # the divergence grows on the side of the start
    z = logit(vit, images)
    moved = z + away * EPS * w.abs().sum()
    clean, attacked = (torch.distributions.Bernoulli(logits=logits) for logits in (z, moved))
    divergence = torch.distributions.kl_divergence(clean, attacked).mean()
    torch.testing.assert_close(values["kl"], divergence)
    torch.testing.assert_close(loss, cross_entropy(z, labels) + 3.0 * divergence)


def test_random_noise(vit, images, labels):
    loss, metrics = loss_of(NoiseAugmentation(RandomNoise(NOISE, match="init")), vit, images, labels)
    _, a = slopes(vit, images)
    start = 2 * torch.rand((6, *vit.noise_shape()), generator=make_generator("cpu", 0), dtype=torch.float64) - 1
    noise = embedding_rms(vit, images) * start
    z = logit(vit, images)
    noisy = z + (a * noise).sum((1, 2))
    torch.testing.assert_close(loss, cross_entropy(z, labels) + cross_entropy(noisy, labels))
    torch.testing.assert_close(metrics["influence"], (2 * (noisy.sigmoid() - z.sigmoid()).square()).mean())


def test_nullspace_noise(vit, images, labels):
    """One Newton step moves log phi to first order onto the level set, unless it is cut."""
    config = dataclasses.replace(NOISE, init_scale=0.5, eps=1e-3)
    loss, metrics = loss_of(NoiseAugmentation(config), vit, images, labels)
    _, a = slopes(vit, images)
    start = 2 * torch.rand((6, *vit.noise_shape()), generator=make_generator("cpu", 0), dtype=torch.float64) - 1
    noise = 0.5 * embedding_rms(vit, images) * start
    z = logit(vit, images)
    p, q = z.sigmoid(), (z + (a * noise).sum((1, 2))).sigmoid()
    target, phi = (LEVEL * config.eps) ** 0.5, 2**0.5 * (q - p).abs()
    change = phi * (phi / target).log() * (q - p).sign() / (2**0.5 * q * (1 - q))
    most = MAX_STEP * noise.flatten(1).norm(dim=1) * a.norm()
    scale = torch.where(phi**2 >= config.eps, target / phi, 1.0)
    noisy = z + scale * ((a * noise).sum((1, 2)) - change.clamp(-most, most))
    torch.testing.assert_close(loss, cross_entropy(z, labels) + cross_entropy(noisy, labels))
    assert metrics["influence_before"] > metrics["influence"]


def draw(sample, shape):
    return sample(shape, generator=make_generator("cpu", 0), dtype=torch.float64)


def symmetric_kl(z, other):
    p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (z, other))
    return (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)).mean()


def l2_ascent(vit, images, labels, attack):
    """The iterates of embedding PGD: the gradient of each image is +a or -a."""
    _, a = slopes(vit, images)
    radius = attack.eps * embedding_rms(vit, images) * a.numel() ** 0.5
    direction = torch.where(labels == 1, -1, 1).view(-1, 1, 1) * a / a.norm()
    start = draw(torch.randn, (6, *vit.noise_shape()))
    iterates = [radius * start / start.flatten(1).norm(dim=1).view(-1, 1, 1)]
    for _ in range(attack.num_steps):
        moved = iterates[-1] + 2.5 * radius / attack.num_steps * direction
        norm = moved.flatten(1).norm(dim=1).view(-1, 1, 1)
        iterates.append(moved * (radius / norm).clamp(max=1))
    return [(a * noise).sum((1, 2)) for noise in iterates]


def test_embedding_pgd(vit, images, labels):
    attack = EmbeddingPGD(eps=0.3, num_steps=3)
    loss, metrics = loss_of(EmbeddingAdversarial(attack), vit, images, labels)
    z = logit(vit, images)
    attacked = z + l2_ascent(vit, images, labels, attack)[-1]
    torch.testing.assert_close(loss, cross_entropy(z, labels) + cross_entropy(attacked, labels))
    assert metrics["adv_top1"] == ((attacked > 0).long() == labels).float().mean()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_freelb_is_the_mean_over_the_iterates(vit, images, labels, num_steps):
    attack = EmbeddingPGD(eps=0.3, num_steps=num_steps)
    loss, _ = loss_of(FreeLB(attack), vit, images, labels)
    z = logit(vit, images)
    iterates = l2_ascent(vit, images, labels, attack)[:num_steps]
    torch.testing.assert_close(loss, sum(cross_entropy(z + change, labels) for change in iterates) / num_steps)


@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_smart_adds_the_divergence_at_its_maximizer(vit, images, labels, num_steps):
    loss, metrics = loss_of(SMART(eps=0.3, num_steps=num_steps, weight=2.0), vit, images, labels)
    _, a = slopes(vit, images)
    radius = 0.3 * embedding_rms(vit, images)
    noise = SMART_START_STD * radius * draw(torch.randn, (6, *vit.noise_shape()))
    away = (a * noise).sum((1, 2)).sign().view(-1, 1, 1)  # the divergence grows on the side of the start
    for _ in range(num_steps):
        step = min(1, 2.5 / num_steps) * radius * away * a / a.abs().max()
        noise = (noise + step).clamp(-radius, radius)
    z = logit(vit, images)
    divergence = symmetric_kl(z, z + (a * noise).sum((1, 2)))
    torch.testing.assert_close(metrics["kl"], divergence)
    torch.testing.assert_close(loss, cross_entropy(z, labels) + 2.0 * divergence)


def test_r3f_adds_the_divergence_under_uniform_noise(vit, images, labels):
    loss, _ = loss_of(R3F(scale=0.3, weight=2.0), vit, images, labels)
    _, a = slopes(vit, images)
    noise = 0.3 * embedding_rms(vit, images) * (2 * draw(torch.rand, (6, *vit.noise_shape())) - 1)
    z = logit(vit, images)
    divergence = symmetric_kl(z, z + (a * noise).sum((1, 2)))
    torch.testing.assert_close(loss, cross_entropy(z, labels) + 2.0 * divergence)


def test_augmix_adds_the_divergence_of_three_views(vit, images, labels):
    views = torch.stack([images, 1 - images, images.flip(-1)], 1)
    loss, metrics = loss_of(AugMix(weight=4.0), vit, views, labels)
    logits = [logit(vit, view) for view in views.unbind(1)]
    mean = torch.distributions.Bernoulli(sum(z.sigmoid() for z in logits) / 3)
    distributions = [torch.distributions.Bernoulli(logits=z) for z in logits]
    divergence = sum(torch.distributions.kl_divergence(p, mean).mean() for p in distributions) / 3
    torch.testing.assert_close(metrics["js"], divergence)
    torch.testing.assert_close(loss, cross_entropy(logits[0], labels) + 4.0 * divergence)


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_gaussian_noise(vit, images, labels, prob):
    loss, _ = loss_of(GaussianNoise(std=0.1, prob=prob), vit, images, labels)
    generator = make_generator("cpu", 0)
    noise = 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    noisy = torch.rand(6, generator=generator, dtype=torch.float64) < prob
    w, _ = slopes(vit, images)
    change = (images + noise).clamp(0, 1) - images
    assert prob != 0.5 or 0 < noisy.sum() < 6
    torch.testing.assert_close(loss, cross_entropy(logit(vit, images) + noisy * (w * change).sum((1, 2, 3)), labels))
