"""AutoAttack and DeepFool: properties that hold for them alone."""

import pytest
import torch

from nsaug.attacks import PGD, AutoAttack, DeepFool
from nsaug.utils.rng import make_generator
from tests.conftest import linear_vit, tiny_vit


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1 / 255, 2 / 255])
def test_autoattack_is_at_least_as_strong_as_pgd(images, eps):
    vit, images = tiny_vit().eval(), images.float()
    labels = vit(images).argmax(1)
    num_correct = []
    for attack in (AutoAttack(eps=eps), PGD(eps=eps, num_steps=20)):
        attacked = attack(vit, images, labels, make_generator("cpu", 0))
        num_correct.append(int((vit(attacked).argmax(1) == labels).sum()))
    assert num_correct[0] <= num_correct[1]


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_autoattack_with_few_classes(images, num_classes):
    vit = tiny_vit(num_classes=num_classes).eval()
    labels = vit(images.float()).argmax(1)
    attacked = AutoAttack(eps=0.2, attacks=("apgd-t", "fab-t"))(vit, images.float(), labels)
    assert (vit(attacked).argmax(1) != labels).any()


def test_deepfool_reaches_the_boundary_of_a_linear_model():
    """The distance to the boundary is the difference of the logits over the norm of its gradient."""
    vit = linear_vit().float().eval()
    images = 0.4 + 0.2 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = images[:1].clone().requires_grad_()
    logits = vit(image)
    (slope,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], image)
    difference = (vit(images) @ torch.tensor([-1.0, 1.0])).detach()
    labels = (difference > 0).long()
    nearest = difference.abs() / slope.norm()
    attacked = DeepFool(eps=1e9, overshoot=0.02)(vit, images, labels)
    distance = (attacked - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, 1.02 * nearest, rtol=0.02, atol=1e-4)
    eps = float(nearest.median())
    distance = (DeepFool(eps=eps)(vit, images, labels) - images).flatten(1).norm(dim=1)
    assert (distance == 0).sum() >= 2, "images whose boundary is farther than eps are returned unchanged"
    assert distance.max() <= eps
