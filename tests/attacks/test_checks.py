import pytest
import torch
from torch import nn

from nsaug.attacks.checks import attack_warnings
from tests.conftest import tiny_vit


class Overconfident(nn.Module):
    """Logits so large that the cross-entropy of a correct prediction is exactly 0."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, images):
        return 1e6 * self.vit(images)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_deterministic_model_has_no_warnings(vit, images, labels, size):
    with torch.no_grad():
        assert attack_warnings(vit.eval(), images[:size], labels[:size]) == []
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_randomized_model(images, labels):
    vit = tiny_vit(args={"embed_dim": 24, "depth": 2, "num_heads": 2, "drop_rate": 0.3}).double().train()
    (warning,) = attack_warnings(vit, images, labels)
    assert "logits change between two forwards" in warning
    assert attack_warnings(vit.eval(), images, labels) == []


def test_masked_gradients(vit, images):
    model = Overconfident(vit.eval())
    predicted = model(images).argmax(1)
    (warning,) = attack_warnings(model, images, predicted)
    assert warning == "the loss has no gradient at 6 of 6 images: try loss=margin"
    assert attack_warnings(model, images, (predicted + 1) % 10) == []
