"""Each method's loss against its definition, and that a step lowers it."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import FGSMRS, PGD
from nsaug.methods import TRADES, AdversarialTraining, Clean, Nullspace, RandomNoise, TwoViews
from nsaug.nullspace import NoiseSynthesis, embedding_rms
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator as draws
from tests.conftest import tiny_vit

SYNTHESIS = NoiseSynthesis(limit=1.0, eps=0.01, lr=0.03)


def prepared(method, vit, images):
    method.double().prepare(vit, images, lambda value: value)
    return method


def test_clean_is_the_cross_entropy(vit, images, labels):
    loss, values = Clean().loss(vit, images, labels, draws("cpu", 0))
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels))
    torch.testing.assert_close(values["top1"], (vit(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("unreached", ["keep", "drop"])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_nullspace_is_the_sum_of_both_cross_entropies(vit, images, labels, unreached, scope):
    synthesis = dataclasses.replace(SYNTHESIS, steps=1, scope=scope)
    method = prepared(Nullspace(synthesis, unreached=unreached), vit, images)
    loss, values = method.loss(vit, images, labels, draws("cpu", 0))
    found = synthesis.refine(vit, images, draws("cpu", 0))
    noisy = F.cross_entropy(vit(images, found.noise), labels, reduction="none")
    kept = found.converged if unreached == "drop" else torch.ones(6)
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels) + (noisy * kept).mean())
    assert values["converged"] == found.converged.float().mean()
    torch.testing.assert_close(values["influence"], found.influence_after.mean())
    if scope == "sample":
        assert 0 < found.converged.sum() < 6, "both kinds of images are in the batch"


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (0.01, 1)])
def test_weighted_noise_on_a_share_of_the_batch(vit, images, labels, share, count):
    method = prepared(Nullspace(SYNTHESIS, share=share, consistency=0.3, weight=0.7), vit, images)
    loss, _ = method.loss(vit, images, labels, draws("cpu", 0))
    some, theirs = images[:count], labels[:count]
    found = SYNTHESIS.refine(vit, some, draws("cpu", 0), rms=method.rms)
    noisy, clean = vit(some, found.noise), vit(some)
    expected = F.cross_entropy(vit(images), labels) + 0.7 * F.cross_entropy(noisy, theirs)
    torch.testing.assert_close(loss, expected + 0.3 * (noisy - clean).square().sum(-1).mean())
    random = prepared(RandomNoise(SYNTHESIS, match="start", share=share, weight=0.7), vit, images)
    loss, _ = random.loss(vit, images, labels, draws("cpu", 0))
    noisy = vit(some, SYNTHESIS.start(vit, some, draws("cpu", 0), random.rms))
    torch.testing.assert_close(loss, F.cross_entropy(vit(images), labels) + 0.7 * F.cross_entropy(noisy, theirs))


def test_the_unit_of_the_noise_is_measured_once_and_kept(vit, images):
    method = prepared(Nullspace(SYNTHESIS), vit, images)
    rms = embedding_rms(vit, images)
    torch.testing.assert_close(method.rms, rms)
    method.prepare(vit, 3 * images, lambda value: value)
    torch.testing.assert_close(method.rms, rms)
    restored = Nullspace(SYNTHESIS).double()
    restored.load_state_dict(method.state_dict())
    restored.prepare(vit, 3 * images, lambda value: value)
    torch.testing.assert_close(restored.rms, rms)


@pytest.mark.parametrize("make", [Nullspace, RandomNoise])
def test_a_warm_start_is_kept_between_batches_and_in_a_checkpoint(make, vit, images, labels):
    synthesis = dataclasses.replace(SYNTHESIS, init="warm", steps=2, eps=1e-9)
    method = prepared(make(synthesis), vit, images)
    method.loss(vit, images, labels, draws("cpu", 0))
    first = method.found.noise
    restored = make(synthesis).double()
    restored.load_state_dict(method.state_dict())
    restored.recall(method.remembered())
    for each in (method, restored):
        each.loss(vit, images, labels, draws("cpu", 1))
        expected = synthesis.refine(vit, images, rms=method.rms, last=first)
        torch.testing.assert_close(each.found.noise, expected.noise)


def test_the_unit_is_the_same_on_all_ranks(vit, images):
    """Ranks average the mean square, not the root."""
    method = Nullspace(SYNTHESIS).double()
    other = embedding_rms(vit, images[3:]).square()
    method.prepare(vit, images[:3], lambda own: (own + other) / 2)
    torch.testing.assert_close(method.rms, embedding_rms(vit, images))


METHODS = {
    "clean": lambda: Clean(),
    "clean_same_compute": lambda: Clean(match_compute_of=Nullspace(SYNTHESIS)),
    "clean_two_views": lambda: TwoViews(),
    "nullspace": lambda: Nullspace(SYNTHESIS),
    "random_noise": lambda: RandomNoise(SYNTHESIS),
    "random_noise_influence": lambda: RandomNoise(SYNTHESIS, match="influence"),
    "random_noise_start": lambda: RandomNoise(SYNTHESIS, match="start"),
    "pgd": lambda: AdversarialTraining(PGD(eps=0.05, num_steps=3)),
    "fgsm_rs": lambda: AdversarialTraining(FGSMRS(eps=0.05)),
    "trades": lambda: TRADES(PGD(eps=0.05, num_steps=3, random_start=False)),
}


def views_of(method, images):
    return torch.stack([images, images.flip(-1)], 1) if method.views == 2 else images


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("drop_path_rate", [0.0, 1e-9])
def test_one_step_lowers_its_own_loss(name, drop_path_rate, images, labels):
    """Attack and noise included, which are made anew for the moved weights."""
    vit = tiny_vit(drop_path_rate=drop_path_rate).double().train()
    method = prepared(METHODS[name](), vit, images)
    images = views_of(method, images)
    before, _ = method.loss(vit, images, labels, draws("cpu", 0))
    gradients = torch.autograd.grad(before, list(vit.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(vit.parameters(), gradients, strict=True):
            parameter -= 1e-3 * gradient
    after, _ = method.loss(vit, images, labels, draws("cpu", 0))
    assert after < before


@pytest.mark.parametrize("setting", [{"restarts": 2}, {"loss": "margin"}])
def test_trades_refuses_what_it_would_not_do(setting):
    with pytest.raises(UserError, match="climbs its own divergence, once"):
        TRADES(PGD(**setting))


@pytest.mark.parametrize("name", METHODS)
def test_the_name_is_the_one_in_tables(name):
    assert METHODS[name]().name == name


@pytest.mark.parametrize("name", METHODS)
def test_certain_targets_are_labels(name, vit, images, labels):
    """Mixup, cutmix and smoothing hand a method probabilities: those of a label give the label's loss."""
    method = prepared(METHODS[name](), vit, images)
    images = views_of(method, images)
    by_label, values = method.loss(vit, images, labels, draws("cpu", 0))
    by_probability, same = method.loss(vit, images, F.one_hot(labels, 10).double(), draws("cpu", 0))
    torch.testing.assert_close(by_probability, by_label)
    assert {key: round(float(value), 6) for key, value in same.items()} == {
        key: round(float(value), 6) for key, value in values.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_it_leaves_gradients_and_modes_and_generators_alone(name, images, labels):
    vit = tiny_vit(drop_path_rate=0.1).double().train()
    vit.model.blocks[0].eval()
    method = prepared(METHODS[name](), vit, images)
    modes, state = [part.training for part in vit.modules()], torch.get_rng_state()
    with torch.random.fork_rng():  # drop path draws from the global generator
        loss, values = method.loss(vit, views_of(method, images), labels, draws("cpu", 0))
    assert [part.training for part in vit.modules()] == modes
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert loss.requires_grad
    assert not any(value.requires_grad for value in values.values())
    assert torch.equal(torch.get_rng_state(), state)


def cost(method, vit, images, labels):
    """Forwards, backwards to activations and backwards to weights of a step, counted at a layer inside, over three."""
    count = 0

    def note(*args):
        nonlocal count
        count += 1

    probe = vit.model.blocks[1].mlp.fc1
    handles = [probe.register_forward_hook(note), probe.register_full_backward_hook(note)]
    loss, _ = method.loss(vit, images, labels, draws("cpu", 0))
    handles.append(probe.weight.register_hook(note))
    loss.backward()
    for handle in handles:
        handle.remove()
    return count / 3


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_is_what_is_computed(name, vit, images, labels):
    """With noise that never gets below ε, so that no loop ends early; matching may, and takes at most its cost."""
    method = METHODS[name]()
    if hasattr(method, "synthesis"):
        method.synthesis = dataclasses.replace(
            method.synthesis, eps=1e-12 if name != "random_noise_influence" else 0.01
        )
    method = prepared(method, vit, images)
    actual = cost(method, vit, views_of(method, images), labels)
    weights = {"clean_two_views", "nullspace", "trades"} | {key for key in METHODS if key.startswith("random")}
    # A weight's gradient is summed before its hook sees it: once per backward, whatever the number of terms.
    actual += 1 / 3 if name in weights else 0
    assert actual <= method.cost if name == "random_noise_influence" else actual == pytest.approx(method.cost)


def test_plain_finetuning_with_the_compute_of_another_method_has_more_epochs():
    assert Clean().duration_factor == 1
    assert Clean(match_compute_of=Nullspace(dataclasses.replace(SYNTHESIS, steps=3))).duration_factor == 4
    assert Clean(match_compute_of=AdversarialTraining(PGD(num_steps=6))).duration_factor == 5


@pytest.mark.parametrize("name", ["pgd", "fgsm_rs", "trades"])
def test_attacks_see_the_model_in_eval_mode(name, images, labels):
    """With drop path on, the images that are trained on are those that the model without it is attacked with."""
    vit = tiny_vit(drop_path_rate=0.9).double().train()
    method, seen = METHODS[name](), []
    vit.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()) if module.training else None)
    with torch.random.fork_rng():
        method.loss(vit, images, labels, draws("cpu", 0))
    vit.eval()
    if name == "trades":
        clean = vit(images).log_softmax(-1).detach()
        start = images + 0.001 * torch.randn(images.shape, generator=draws("cpu", 0), dtype=torch.float64)
        kl = torch.nn.KLDivLoss(reduction="sum")
        expected = method.attack.ascend(lambda x: kl(vit(x).log_softmax(-1), clean.exp()), images, start.clamp(0, 1))
    else:
        expected = method.attack(vit, images, labels, draws("cpu", 0))
    torch.testing.assert_close(seen[-1], expected)


def test_fgsm_rs_is_pgd_with_one_step(vit, images, labels):
    once = PGD(eps=0.05, num_steps=1, step_size=0.0625)(vit, images, labels, draws("cpu", 0))
    torch.testing.assert_close(FGSMRS(eps=0.05)(vit, images, labels, draws("cpu", 0)), once)
