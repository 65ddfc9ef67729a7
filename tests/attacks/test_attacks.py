"""Both attacks against foolbox's, and what every attack has to keep."""

import dataclasses

import foolbox
import pytest
import torch

from nsaug.attacks import FGSM, PGD
from nsaug.draws import generator as draws

ATTACKS = [
    FGSM(eps="8/255"),
    PGD(eps="8/255", num_steps=5),
    PGD(eps="8/255", num_steps=5, random_start=False),
]


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


@pytest.mark.parametrize("attack", ATTACKS)
def test_eps_zero_changes_nothing(vit, images, labels, attack):
    assert torch.equal(dataclasses.replace(attack, eps=0)(vit, images, labels, draws("cpu", 0)), images)


@pytest.mark.parametrize("attack", ATTACKS)
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
