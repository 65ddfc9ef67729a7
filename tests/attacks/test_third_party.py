"""Attacks of other libraries: that they attack, and that they leave no trace."""

import logging
import random
import sys

import foolbox
import numpy as np
import pytest
import torch

from nsaug.attacks import CW, PGD, PGDL2, AutoAttack, DeepFool
from nsaug.attacks.objectives import margin
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator as draws
from tests.conftest import linear_vit, tiny_vit

QUICK = {"attacks": ("apgd-ce", "apgd-t")}
ATTACKS = [
    AutoAttack(eps=8 / 255, **QUICK),
    AutoAttack(eps=0.4, norm="L2", attacks=("apgd-ce", "fab-t")),
    DeepFool(eps=0.4),
    CW(eps=0.4, num_steps=30, searches=3),
]


@pytest.fixture
def small():
    return tiny_vit().eval()


@pytest.fixture
def right(small, images):
    """Labels that the model gives itself, so that there is something to lose."""
    return small(images.float()).argmax(1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_stay_in_ball_and_box_and_are_lost(small, images, right, attack):
    images = images.float()
    attacked = attack(small, images, right, draws("cpu", 0))
    change = (attacked - images).flatten(1)
    size = change.abs().amax(1) if getattr(attack, "norm", "L2") == "Linf" else change.norm(dim=1)
    assert size.max() <= attack.eps + 1e-5
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not attacked.requires_grad
    assert (margin(small(attacked), right) > 0).float().mean() > 0.5


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_leaves_no_trace(images, right, attack, caplog):
    caplog.set_level(logging.INFO)
    vit = tiny_vit().train()
    gradients = [torch.full_like(parameter, 0.25) for parameter in vit.parameters()]
    for parameter, gradient in zip(vit.parameters(), gradients, strict=True):
        parameter.grad = gradient
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    expected = torch.rand(2), np.random.rand(), random.random()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    hooks = sum(len(part._forward_hooks) for part in vit.modules())
    with torch.no_grad():
        attack(vit, images.float().transpose(2, 3), right, draws("cpu", 0))  # not contiguous
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]
    assert all(parameter.grad is own for parameter, own in zip(vit.parameters(), gradients, strict=True))
    assert all((gradient == 0.25).all() for gradient in gradients)
    assert all(parameter.requires_grad for parameter in vit.parameters())
    assert sum(len(part._forward_hooks) for part in vit.modules()) == hooks
    assert vit.training
    assert not caplog.text
    logging.getLogger("after").info("what is said afterwards is heard")
    assert caplog.text


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_same_draws_give_the_same_images(small, images, right, attack):
    first, again = (attack(small, images.float(), right, draws("cpu", 0)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(type(attack)(eps=0.0)(small, images.float(), right), images.float())


def test_autoattack_is_no_weaker_than_pgd(small, images, right):
    images = images.float()
    for eps in (1 / 255, 2 / 255):
        strong = AutoAttack(eps=eps)(small, images, right, draws("cpu", 0))
        weak = PGD(eps=eps, num_steps=20)(small, images, right, draws("cpu", 0))
        stands = [int((small(each).argmax(1) == right).sum()) for each in (strong, weak)]
        assert stands[0] <= stands[1]


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_fewer_classes_than_ten(images, classes):
    vit = tiny_vit(num_classes=classes).eval()
    right = vit(images.float()).argmax(1)
    attacked = AutoAttack(eps=0.2, attacks=("apgd-t", "fab-t"))(vit, images.float(), right)
    assert (vit(attacked).argmax(1) != right).any()


def test_deepfool_finds_the_boundary_of_a_linear_model():
    """The nearest point of a plane has a closed form: the logits' difference over its slope's norm."""
    vit = linear_vit().float().eval()
    images = 0.4 + 0.2 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = images[:1].clone().requires_grad_()
    logits = vit(image)
    (slope,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], image)
    difference = (vit(images) @ torch.tensor([-1.0, 1.0])).detach()
    right = (difference > 0).long()
    nearest = difference.abs() / slope.norm()
    attacked = DeepFool(eps=1e9, overshoot=0.02)(vit, images, right)
    distance = (attacked - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, 1.02 * nearest, rtol=0.02, atol=1e-4)
    half = float(nearest.median())
    kept = DeepFool(eps=half)(vit, images, right)
    near = (kept - images).flatten(1).norm(dim=1)
    assert (near == 0).sum() >= 2, "what lies farther than eps stays as it is"
    assert near.max() <= half


def test_cw_is_foolboxs_and_closer_than_pgd(small, images, right):
    images = images.float()
    ours = CW(eps=1e9, num_steps=50, weight=0.1, searches=4)(small, images, right)
    theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=4, steps=50, stepsize=0.01, initial_const=0.1)
    model = foolbox.PyTorchModel(small, bounds=(0, 1), device="cpu")
    expected, _, found = theirs(model, images, right, epsilons=None)
    torch.testing.assert_close(ours, expected)
    assert found.any()
    distance = (ours - images).flatten(1).norm(dim=1)[found]
    far = PGDL2(eps=float(distance.max()), num_steps=50)(small, images, right)
    assert distance.mean() < (far - images).flatten(1).norm(dim=1).mean()


def test_what_is_not_installed_is_named(small, images, right, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"this needs pyautoattack: pip install 'nsaug\[attacks\]'"):
        AutoAttack()(small, images.float(), right)
