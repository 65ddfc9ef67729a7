"""Each method's loss against its definition, and that a step lowers it."""

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
    RDrop,
    TwoViews,
)
from nsaug.nullspace import NullspaceNoise, RandomNoise, UniversalNoise
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from tests.conftest import TINY, tiny_vit

NOISE = NullspaceNoise(init_scale=0.5, eps=0.02)


def ready(method, vit):
    method = method.double()
    method.setup(vit)
    return method


def test_clean_is_the_cross_entropy(vit, images, labels):
    loss, metrics = Clean().loss(vit, images, labels, make_generator("cpu", 0))
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels))
    torch.testing.assert_close(metrics["top1"], (vit(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("scope", ["per_image", "per_batch"])
def test_noise_augmentation_is_the_sum_of_both_cross_entropies(vit, images, labels, scope):
    noise = dataclasses.replace(NOISE, scope=scope)
    loss, metrics = ready(NoiseAugmentation(noise), vit).loss(vit, images, labels, make_generator("cpu", 0))
    result = noise(vit, images, generator=make_generator("cpu", 0))
    noisy = F.cross_entropy(vit(images, result.noise), labels)
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels) + noisy)
    assert metrics["converged"] == result.converged.float().mean()
    torch.testing.assert_close(metrics["influence"], result.influence_after.mean())
    torch.testing.assert_close(metrics["influence_before"], result.influence_before.mean())
    torch.testing.assert_close(metrics["noise_rms"], result.noise.flatten(1).pow(2).mean(1).sqrt().mean())


def test_universal_noise_is_learned_at_the_start_of_an_epoch(vit, images, labels):
    method = ready(NoiseAugmentation(UniversalNoise(init_scale=0.5, data_fraction=1.0)), vit)
    method.start_epoch(vit, lambda *_: iter([images]), 1, make_generator("cpu", 1), lambda value: value)
    assert method.noise.noise.norm() > 0
    loss, _ = method.loss(vit, images, labels, make_generator("cpu", 0))
    noisy = F.cross_entropy(vit(images, method.noise.noise), labels)
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels) + noisy)
    restored = ready(NoiseAugmentation(UniversalNoise(init_scale=0.5, data_fraction=1.0)), vit)
    restored.load_state_dict(method.state_dict())
    torch.testing.assert_close(restored.noise.noise, method.noise.noise)


METHODS = {
    "clean": lambda: Clean(),
    "clean_same_compute": lambda: Clean(match_compute_of=NoiseAugmentation(NOISE)),
    "clean_two_views": lambda: TwoViews(),
    "nullspace": lambda: NoiseAugmentation(NOISE),
    "random_noise": lambda: NoiseAugmentation(RandomNoise(NOISE)),
    "random_noise_influence": lambda: NoiseAugmentation(RandomNoise(NOISE, match="influence")),
    "random_noise_init": lambda: NoiseAugmentation(RandomNoise(NOISE, match="init")),
    "pgd": lambda: AdversarialTraining(PGD(eps=0.05, num_steps=3)),
    "fgsm_rs": lambda: AdversarialTraining(FGSMRS(eps=0.05), "fgsm_rs"),
    "trades": lambda: TRADES(PGD(eps=0.05, num_steps=3, random_start=False)),
    "embedding_pgd": lambda: EmbeddingAdversarial(EmbeddingPGD(eps=0.1, num_steps=3)),
    "freelb": lambda: FreeLB(EmbeddingPGD(eps=0.1, num_steps=3)),
    "smart": lambda: SMART(eps=0.1, num_steps=2),
    "r3f": lambda: R3F(),
    "augmix": lambda: AugMix(),
    "gaussian_noise": lambda: GaussianNoise(),
}


def views_of(method, images):
    views = [images, images.flip(-1), 1 - images][: method.num_views]
    return torch.stack(views, 1) if method.num_views > 1 else images


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("drop_path_rate", [0.0, 1e-9])
def test_one_step_lowers_its_own_loss(name, drop_path_rate, images, labels):
    """The loss of the new weights includes the attack or noise for them."""
    vit = tiny_vit(drop_path_rate=drop_path_rate).double().train()
    method = ready(METHODS[name](), vit)
    images = views_of(method, images)
    before, _ = method.loss(vit, images, labels, make_generator("cpu", 0))
    gradients = torch.autograd.grad(before, list(vit.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(vit.parameters(), gradients, strict=True):
            parameter -= 1e-4 * gradient
    after, _ = method.loss(vit, images, labels, make_generator("cpu", 0))
    assert after < before


@pytest.mark.parametrize("setting", [{"restarts": 2}, {"loss": "margin"}])
def test_trades_refuses_settings_it_cannot_use(setting):
    with pytest.raises(UserError, match="maximizes its own divergence, once"):
        TRADES(PGD(**setting))


@pytest.mark.parametrize("name", METHODS)
def test_name(name):
    assert METHODS[name]().name == name


@pytest.mark.parametrize("name", METHODS)
def test_one_hot_targets_equal_labels(name, vit, images, labels):
    """Mixup, cutmix and smoothing pass probabilities; those of a single class give the loss of its label."""
    method = ready(METHODS[name](), vit)
    images = views_of(method, images)
    by_label, metrics = method.loss(vit, images, labels, make_generator("cpu", 0))
    by_probability, same = method.loss(vit, images, F.one_hot(labels, 10).double(), make_generator("cpu", 0))
    torch.testing.assert_close(by_probability, by_label)
    assert {key: round(float(value), 6) for key, value in same.items()} == {
        key: round(float(value), 6) for key, value in metrics.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_gradients_modes_and_generators_are_unchanged(name, images, labels):
    vit = tiny_vit(drop_path_rate=0.1).double().train()
    vit.model.blocks[0].eval()
    method = ready(METHODS[name](), vit)
    modes, state = [part.training for part in vit.modules()], torch.get_rng_state()
    with torch.random.fork_rng():  # drop path draws from the global generator
        loss, metrics = method.loss(vit, views_of(method, images), labels, make_generator("cpu", 0))
    assert [part.training for part in vit.modules()] == modes
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    assert torch.equal(torch.get_rng_state(), state)


def cost(method, vit, images, labels):
    """A third of the forwards, backwards to activations and backwards to weights of a step, counted at one layer."""
    passes = []
    probe = vit.model.blocks[1].mlp.fc1
    handles = [
        probe.register_forward_hook(lambda module, args, output: passes.append(len(output) / len(labels))),
        probe.register_full_backward_hook(lambda module, _, grads: passes.append(len(grads[0]) / len(labels))),
    ]
    loss, _ = method.loss(vit, images, labels, make_generator("cpu", 0))
    handles.append(probe.weight.register_hook(lambda gradient: passes.append(1)))
    loss.backward()
    for handle in handles:
        handle.remove()
    return sum(passes) / 3


ONE_TERM = {"clean", "clean_same_compute", "pgd", "fgsm_rs", "gaussian_noise"}
NUM_TERMS = dict.fromkeys(METHODS, 2) | dict.fromkeys(ONE_TERM, 1) | {"freelb": 3, "augmix": 3}
"""Forwards whose weights the loss reaches."""


@pytest.mark.parametrize("name", METHODS)
def test_cost_is_what_is_computed(name, vit, images, labels):
    method = ready(METHODS[name](), vit)
    measured = cost(method, vit, views_of(method, images), labels)
    # The gradients of a weight are summed before its hook is called: once per backward, whatever the number of terms.
    measured += (NUM_TERMS[name] - 1) / 3
    assert measured == pytest.approx(method.cost)


def test_plain_finetuning_with_the_compute_of_another_method_has_more_epochs():
    assert Clean().duration_factor == 1
    assert Clean(match_compute_of=NoiseAugmentation(dataclasses.replace(NOISE, num_steps=3))).duration_factor == 4
    assert Clean(match_compute_of=AdversarialTraining(PGD(num_steps=6))).duration_factor == 5


def test_r_drop_compares_two_draws_of_dropout(images, labels):
    vit = tiny_vit(drop_path_rate=0.5).double().train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss, metrics = ready(RDrop(weight=0.6), vit).loss(vit, images, labels, make_generator("cpu", 0))
        torch.manual_seed(1)
        first, second = vit(images), vit(images)
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
    kl = torch.distributions.kl_divergence
    divergence = (kl(p, q) + kl(q, p)).mean() / 2
    torch.testing.assert_close(metrics["kl"], divergence.detach())
    expected = F.cross_entropy(first, labels) + F.cross_entropy(second, labels) + 0.6 * divergence
    torch.testing.assert_close(loss, expected)
    assert metrics["kl"] > 0.01


def test_r_drop_needs_dropout():
    with pytest.raises(UserError, match="set model.drop_path_rate=0.1"):
        RDrop().setup(tiny_vit())
    RDrop().setup(tiny_vit(args=TINY | {"drop_rate": 0.1}).eval())


@pytest.mark.parametrize("method", [EmbeddingAdversarial, FreeLB])
def test_layer_is_checked(method):
    with pytest.raises(UserError, match="takes no noise at blocks.9"):
        method(EmbeddingPGD(layer="blocks.9")).setup(tiny_vit())


@pytest.mark.parametrize("method", [SMART, R3F])
def test_layer_of_smoothness_is_checked(method):
    vit = tiny_vit(grad_checkpointing=True)
    with pytest.raises(UserError, match=r"without the noise at blocks\.1: set .*, or method\.layer=patch_embed"):
        method(layer="blocks.1").setup(vit)


@pytest.mark.parametrize("name", ["pgd", "fgsm_rs", "trades"])
def test_attacks_see_the_model_in_eval_mode(name, images, labels):
    """With drop path on, the images that are trained on are those that the model without it is attacked with."""
    vit = tiny_vit(drop_path_rate=0.9).double().train()
    method, seen = METHODS[name](), []
    vit.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()) if module.training else None)
    with torch.random.fork_rng():
        method.loss(vit, images, labels, make_generator("cpu", 0))
    vit.eval()
    if name == "trades":
        clean = vit(images).log_softmax(-1).detach()
        start = images + 0.001 * torch.randn(images.shape, generator=make_generator("cpu", 0), dtype=torch.float64)
        kl = torch.nn.KLDivLoss(reduction="sum")
        expected = method.attack.ascend(lambda x: kl(vit(x).log_softmax(-1), clean.exp()), images, start.clamp(0, 1))
    else:
        expected = method.attack(vit, images, labels, make_generator("cpu", 0))
    torch.testing.assert_close(seen[-1], expected)


def test_fgsm_rs_is_pgd_with_one_step(vit, images, labels):
    once = PGD(eps=0.05, num_steps=1, step_size=0.0625)(vit, images, labels, make_generator("cpu", 0))
    torch.testing.assert_close(FGSMRS(eps=0.05)(vit, images, labels, make_generator("cpu", 0)), once)
