import pytest
import torch
from torch import nn

from nsaug.attacks.checks import attack_warnings
from tests.conftest import tiny_vit


class Sure(nn.Module):
    """Logits so large that the cross-entropy of a right answer is exactly 0."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, images):
        return 1e6 * self.vit(images)


def test_a_plain_model_raises_none(vit, images, labels):
    assert attack_warnings(vit.eval(), images, labels) == []
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_a_randomised_model(images, labels):
    vit = tiny_vit(args={"embed_dim": 24, "depth": 2, "num_heads": 2, "drop_rate": 0.3}).double().train()
    (said,) = attack_warnings(vit, images, labels)
    assert "answers differently each time" in said
    assert attack_warnings(vit.eval(), images, labels) == []


def test_masked_gradients(vit, images):
    sure = Sure(vit.eval())
    right = sure(images).argmax(1)
    (said,) = attack_warnings(sure, images, right)
    assert said == "the loss has no gradient at 6 of 6 images: try loss=margin"
    assert attack_warnings(sure, images, (right + 1) % 10) == []


@pytest.mark.parametrize("size", [1, 3])
def test_any_batch(vit, images, labels, size):
    with torch.no_grad():
        assert attack_warnings(vit.eval(), images[:size], labels[:size]) == []
