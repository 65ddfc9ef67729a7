"""Attacks against foolbox's and torchattack's, and what every attack has to keep."""

import dataclasses

import foolbox
import pytest
import torch
import torchattack

from nsaug.attacks import FGSM, MIFGSM, PGD, PGDL2
from nsaug.attacks.objectives import margin
from nsaug.utils.rng import make_generator as draws

ATTACKS = [
    FGSM(eps="8/255"),
    PGD(eps="8/255", num_steps=5),
    PGD(eps="8/255", num_steps=5, random_start=False),
    PGD(eps="8/255", num_steps=5, restarts=3, loss="margin"),
    MIFGSM(eps="8/255", num_steps=5),
]
ROUND = [PGDL2(eps=0.4, num_steps=5), PGDL2(eps=0.4, num_steps=5, restarts=2, loss="margin")]


def foolbox_images(vit, images, labels, attack, eps):
    model = foolbox.PyTorchModel(vit.eval(), bounds=(0, 1), device="cpu")
    return attack(model, images, labels, epsilons=eps)[1]


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
def test_fgsm_is_foolboxs(vit, images, labels, eps):
    theirs = foolbox_images(vit, images, labels, foolbox.attacks.LinfFastGradientAttack(), eps)
    torch.testing.assert_close(FGSM(eps=eps)(vit, images, labels), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
@pytest.mark.parametrize("step_size", [None, 0.01])
def test_pgd_is_foolboxs(vit, images, labels, eps, step_size):
    ours = PGD(eps=eps, num_steps=7, step_size=step_size, random_start=False)
    step = 2.5 * eps / 7 if step_size is None else step_size
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=7, random_start=False)
    expected = foolbox_images(vit, images, labels, theirs, eps)
    torch.testing.assert_close(ours(vit, images, labels), expected, atol=1e-5, rtol=0)
    assert not torch.equal(expected, images)


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_stay_in_ball_and_box_and_lose(vit, images, labels, attack):
    vit.eval()
    attacked = attack(vit, images, labels, draws("cpu", 0))
    assert (attacked - images).abs().max() <= attack.eps + 1e-12
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    loss = torch.nn.functional.cross_entropy
    assert loss(vit(attacked), labels) > loss(vit(images), labels)
    assert not attacked.requires_grad


@pytest.mark.parametrize("attack", ROUND)
def test_images_stay_in_the_l2_ball(vit, images, labels, attack):
    vit.eval()
    attacked = attack(vit, images, labels, draws("cpu", 0))
    distance = (attacked - images).flatten(1).norm(dim=1)
    assert distance.max() <= attack.eps + 1e-12
    assert distance.min() > 0.3
    assert 0 <= attacked.min() <= attacked.max() <= 1
    loss = torch.nn.functional.cross_entropy
    assert loss(vit(attacked), labels) > loss(vit(images), labels)


@pytest.mark.parametrize("eps", [0.1, 1.0])
@pytest.mark.parametrize("step_size", [None, 0.07])
def test_l2_pgd_is_foolboxs(vit, images, labels, eps, step_size):
    ours = PGDL2(eps=eps, num_steps=7, step_size=step_size, random_start=False)
    step = 2.5 * eps / 7 if step_size is None else step_size
    theirs = foolbox.attacks.L2PGD(abs_stepsize=step, steps=7, random_start=False)
    expected = foolbox_images(vit, images, labels, theirs, eps)
    torch.testing.assert_close(ours(vit, images, labels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_mim_is_torchattacks(vit, images, labels, decay):
    vit.eval()
    theirs = torchattack.MIFGSM(vit, eps=8 / 255, steps=6, decay=decay, device="cpu")
    expected = theirs(images, labels)
    torch.testing.assert_close(
        MIFGSM(eps=8 / 255, num_steps=6, decay=decay)(vit, images, labels), expected, atol=1e-6, rtol=0
    )
    assert (expected - images).abs().max() > 7 / 255


def test_the_margin_is_above_zero_where_the_answer_is_wrong(vit, images):
    logits = vit.eval()(images).detach()
    right = logits.argmax(1)
    assert (margin(logits, right) < 0).all()
    assert (margin(logits, (right + 1) % 10) > 0).all()
    top = logits.topk(2).values
    torch.testing.assert_close(margin(logits, right), top[:, 1] - top[:, 0])
    torch.testing.assert_close(margin(logits, torch.nn.functional.one_hot(right, 10).double()), top[:, 1] - top[:, 0])


def test_a_start_in_the_l2_ball_is_uniform():
    """The distance's d-th power is, d being the number of values."""
    images = torch.full((4000, 3, 1, 1), 0.5)
    start = PGDL2(eps=0.3).start(images, draws("cpu", 0))
    share = ((start - images).flatten(1).norm(dim=1) / 0.3) ** 3
    assert abs(float(share.mean()) - 0.5) < 0.02
    assert abs(float(share.var()) - 1 / 12) < 0.01
    assert abs(float((start - images).mean())) < 0.01


@pytest.mark.parametrize("make", [PGD, PGDL2])
def test_restarts_keep_the_worst(vit, images, labels, make):
    vit.eval()
    attack = make(eps=0.02, num_steps=1, restarts=5)
    rng = draws("cpu", 0)
    once = dataclasses.replace(attack, restarts=1)
    attempts = [once(vit, images, labels, rng) for _ in range(5)]
    margins = torch.stack([margin(vit(attempt), labels) for attempt in attempts]).detach()
    kept = margin(vit(attack(vit, images, labels, draws("cpu", 0))), labels).detach()
    torch.testing.assert_close(kept, margins.amax(0))
    assert (margins.amax(0) > margins[0]).any()


@pytest.mark.parametrize("attack", [*ATTACKS, *ROUND])
def test_eps_zero_changes_nothing(vit, images, labels, attack):
    assert torch.equal(dataclasses.replace(attack, eps=0)(vit, images, labels, draws("cpu", 0)), images)


@pytest.mark.parametrize("attack", [*ATTACKS, *ROUND])
def test_it_leaves_everything_as_it_was(vit, images, labels, attack):
    vit.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        attack(vit, images, labels, draws("cpu", 0))
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert vit.training


def test_the_random_start_is_drawn_from_the_generator(vit, images, labels):
    attack = PGD(eps="8/255", num_steps=0)
    first, again, other = (attack(vit, images, labels, draws("cpu", key)) for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first - images).abs().max() > 7 / 255
