"""Attacks against the implementations of foolbox and torchattack."""

import foolbox
import pytest
import torch
import torchattack

from nsaug.attacks import CW, FGSM, MIFGSM, PGD, PGDL2
from tests.conftest import tiny_vit


def foolbox_attack(vit, images, labels, attack, eps):
    model = foolbox.PyTorchModel(vit.eval(), bounds=(0, 1), device="cpu")
    return attack(model, images, labels, epsilons=eps)[1]


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
def test_fgsm_matches_foolbox(vit, images, labels, eps):
    expected = foolbox_attack(vit, images, labels, foolbox.attacks.LinfFastGradientAttack(), eps)
    torch.testing.assert_close(FGSM(eps=eps)(vit, images, labels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("attack", "reference", "eps"),
    [(PGD, foolbox.attacks.LinfPGD, eps) for eps in (1 / 255, 8 / 255, 0.3)]
    + [(PGDL2, foolbox.attacks.L2PGD, eps) for eps in (0.1, 1.0)],
)
@pytest.mark.parametrize("step_size", [None, 0.01, 0.07])
def test_pgd_matches_foolbox(vit, images, labels, attack, reference, eps, step_size):
    abs_stepsize = 2.5 * eps / 7 if step_size is None else step_size
    theirs = reference(abs_stepsize=abs_stepsize, steps=7, random_start=False)
    expected = foolbox_attack(vit, images, labels, theirs, eps)
    ours = attack(eps=eps, num_steps=7, step_size=step_size, random_start=False)
    torch.testing.assert_close(ours(vit, images, labels), expected, atol=1e-5, rtol=0)
    assert not torch.equal(expected, images)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_mifgsm_matches_torchattack(vit, images, labels, decay):
    vit.eval()
    expected = torchattack.MIFGSM(vit, eps=8 / 255, steps=6, decay=decay, device="cpu")(images, labels)
    attacked = MIFGSM(eps=8 / 255, num_steps=6, decay=decay)(vit, images, labels)
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)
    assert (expected - images).abs().max() > 7 / 255


def test_cw_matches_foolbox_and_is_closer_than_pgd(images):
    vit, images = tiny_vit().eval(), images.float()
    labels = vit(images).argmax(1)
    attacked = CW(eps=1e9, num_steps=50, initial_const=0.1, binary_search_steps=4)(vit, images, labels)
    theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=4, steps=50, stepsize=0.01, initial_const=0.1)
    model = foolbox.PyTorchModel(vit, bounds=(0, 1), device="cpu")
    expected, _, success = theirs(model, images, labels, epsilons=None)
    torch.testing.assert_close(attacked, expected)
    assert success.any()
    distance = (attacked - images).flatten(1).norm(dim=1)[success]
    pgd = PGDL2(eps=float(distance.max()), num_steps=50)(vit, images, labels)
    assert distance.mean() < (pgd - images).flatten(1).norm(dim=1).mean()
