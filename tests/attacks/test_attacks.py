"""Properties of every attack."""

import dataclasses
import logging
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nsaug.attacks import CW, FGSM, FGSMRS, MIFGSM, PGD, PGDL2, Attack, AutoAttack, DeepFool, PatchFool
from nsaug.attacks.objectives import margin
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from tests.conftest import tiny_vit

ATTACKS = {
    "fgsm": FGSM(eps="8/255"),
    "fgsm_rs": FGSMRS(eps="8/255"),
    "pgd": PGD(eps="8/255", num_steps=5),
    "pgd_without_random_start": PGD(eps="8/255", num_steps=5, random_start=False),
    "pgd_with_restarts": PGD(eps="8/255", num_steps=5, restarts=3, loss="margin"),
    "pgd_l2": PGDL2(eps=0.4, num_steps=5),
    "pgd_l2_with_restarts": PGDL2(eps=0.4, num_steps=5, restarts=2, loss="margin"),
    "mifgsm": MIFGSM(eps="8/255", num_steps=5),
    "patch_fool": PatchFool(eps=0.5, num_patches=2, num_steps=5),
    "autoattack": AutoAttack(eps=8 / 255, attacks=("apgd-ce", "apgd-t")),
    "autoattack_l2": AutoAttack(eps=0.4, norm="L2", attacks=("apgd-ce", "fab-t")),
    "deepfool": DeepFool(eps=0.4),
    "cw": CW(eps=0.4, num_steps=30, binary_search_steps=3),
}
L2 = {"pgd_l2", "pgd_l2_with_restarts", "autoattack_l2", "deepfool", "cw"}
THIRD_PARTY = {"autoattack", "autoattack_l2", "deepfool", "cw"}

all_attacks = pytest.mark.parametrize("name", ATTACKS)


@pytest.fixture
def dtype(name):
    return torch.float32 if name in THIRD_PARTY else torch.float64


@pytest.fixture
def vit(dtype):
    return tiny_vit().to(dtype).eval()


@pytest.fixture
def images(images, dtype):
    return images.to(dtype)


@pytest.fixture
def labels(vit, images):
    return vit(images).argmax(1)


@all_attacks
def test_satisfies_protocol(name):
    assert isinstance(ATTACKS[name], Attack)
    assert ATTACKS[name].num_steps >= 1


@all_attacks
def test_stays_in_ball_and_increases_loss(vit, images, labels, name):
    attack = ATTACKS[name]
    attacked = attack(vit, images, labels, make_generator("cpu", 0))
    delta = (attacked - images).flatten(1)
    distance = delta.norm(dim=1) if name in L2 else delta.abs().amax(1)
    assert distance.max() <= attack.eps + (1e-5 if name in THIRD_PARTY else 1e-12)
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not attacked.requires_grad
    assert F.cross_entropy(vit(attacked), labels) > F.cross_entropy(vit(images), labels)
    if name in THIRD_PARTY:
        assert (margin(vit(attacked), labels) > 0).float().mean() > 0.5
    if isinstance(attack, PGDL2):
        assert distance.min() > 0.3


@all_attacks
def test_zero_eps_returns_images(vit, images, labels, name):
    attack = dataclasses.replace(ATTACKS[name], eps=0)
    assert torch.equal(attack(vit, images, labels, make_generator("cpu", 0)), images)


@all_attacks
def test_same_generator_gives_same_images(vit, images, labels, name):
    first, second = (ATTACKS[name](vit, images, labels, make_generator("cpu", 0)) for _ in range(2))
    assert torch.equal(first, second)


@all_attacks
def test_has_no_side_effects(vit, images, labels, name, caplog):
    caplog.set_level(logging.INFO)
    vit.train()
    grads = [torch.full_like(parameter, 0.25) for parameter in vit.parameters()]
    for parameter, grad in zip(vit.parameters(), grads, strict=True):
        parameter.grad = grad
    seed_global_generators()
    expected = torch.rand(2), np.random.rand(), random.random()
    seed_global_generators()
    num_hooks = sum(len(module._forward_hooks) for module in vit.modules())
    with torch.no_grad():
        ATTACKS[name](vit, images.transpose(2, 3), labels, make_generator("cpu", 0))  # not contiguous
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]
    assert all(parameter.grad is grad for parameter, grad in zip(vit.parameters(), grads, strict=True))
    assert all((grad == 0.25).all() for grad in grads)
    assert all(parameter.requires_grad for parameter in vit.parameters())
    assert sum(len(module._forward_hooks) for module in vit.modules()) == num_hooks
    assert vit.training
    assert not caplog.text
    logging.getLogger("test").info("logging is enabled again")
    assert caplog.text


def seed_global_generators():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


@pytest.mark.parametrize(("name", "module"), [("autoattack", "pyautoattack"), ("deepfool", "foolbox.attacks")])
def test_missing_library_is_named(vit, images, labels, name, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"this needs {module}: pip install 'nsaug\[attacks\]'"):
        ATTACKS[name](vit, images, labels)
