import pytest
import torch

from nsaug.nullspace import influence


def test_two_classes_in_closed_form():
    """With probabilities p and q of the first of two classes, the influence is 2 (p - q)^2."""
    p, q = (
        torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64),
        torch.tensor([0.5, 0.1, 0.25], dtype=torch.float64),
    )
    logits = [torch.stack([x.log(), (1 - x).log()], 1) + 3.0 for x in (p, q)]
    torch.testing.assert_close(influence(*logits), 2 * (p - q) ** 2)


def test_its_range():
    far = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]])
    assert influence(far, far.flip(0)).tolist() == [2.0, 2.0]
    assert influence(far, far).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype):
    a, b = torch.randn(8, 10).to(dtype), torch.randn(8, 10).to(dtype)
    assert torch.equal(influence(a, b), influence(a.float(), b.float()))
