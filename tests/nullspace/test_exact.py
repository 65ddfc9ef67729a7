"""The exact nullspace, compared with scipy's and with the logits of images that differ by it."""

import numpy as np
import pytest
import torch
from scipy.linalg import null_space, subspace_angles
from scipy.optimize import minimize

from nsaug.models.factory import build_vit
from nsaug.nullspace import ExactNullspace
from nsaug.utils.errors import UserError
from tests.conftest import tiny_vit

SMALL = {"depth": 1}
NULLITY = {  # with random weights: values of a patch minus embedding width, at least 0
    "vit_base_patch32_224": 2304,
    "vit_small_patch32_224": 2688,
    "vit_tiny_patch16_224": 576,
    "vit_small_patch16_224": 384,
    "vit_small_patch14_dinov2": 204,
    "vit_base_patch16_224": 0,
    "swin_tiny_patch4_window7_224": 0,
}


@pytest.fixture
def wide():
    """Patches of 48 values and embeddings of width 24, so the nullspace has dimension 24; different std per channel."""
    return tiny_vit(patch_size=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5)).double().eval()


@pytest.mark.parametrize("name", NULLITY)
def test_dimension_by_architecture(name):
    args = {"depths": (1, 1, 1, 1)} if "swin" in name else SMALL
    vit = build_vit(name, num_classes=2, args=args, img_size=224)
    assert ExactNullspace(vit).dimension == NULLITY[name]


def test_basis_spans_scipy_null_space(wide):
    null = ExactNullspace(wide)
    assert (null.patch, null.width, null.rank, null.dimension) == ((4, 4), 24, 24, 24)
    basis = null.basis.flatten(1).numpy()
    np.testing.assert_allclose(basis @ basis.T, np.eye(24), atol=1e-12)
    scale = 1 / np.repeat([0.2, 0.25, 0.5], 16)
    theirs = null_space(wide.model.patch_embed.proj.weight.detach().flatten(1).numpy() * scale)
    assert subspace_angles(basis.T, theirs).max() < 1e-6


def test_nullspace_change_keeps_logits(wide, images):
    null = ExactNullspace(wide)
    change = null.project(torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert change.square().mean().sqrt() > 0.5
    torch.testing.assert_close(wide(images + change), wide(images), atol=1e-9, rtol=0)
    # without the normalization the nullspace is another one
    assert not torch.allclose(wide.model(images + change), wide.model(images), atol=1e-3)


def test_projection_is_orthogonal(wide):
    null = ExactNullspace(wide)
    change = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = null.project(change)
    torch.testing.assert_close(null.project(inside), inside)
    rest = (change - inside).unfold(2, 4, 4).unfold(3, 4, 4)  # (2, 3, 2, 2, 4, 4)
    torch.testing.assert_close(
        torch.einsum("bcijhw,kchw->bijk", rest, null.basis), torch.zeros(2, 2, 2, 24, dtype=torch.float64)
    )


@pytest.fixture
def pair(wide, images):
    targets = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return images[:2], targets, ExactNullspace(wide).nearest(images[:2], targets)


def test_nearest_image_keeps_logits(wide, pair):
    images, targets, nearest = pair
    assert nearest.min() >= 0
    assert nearest.max() <= 1
    assert (nearest - images).abs().mean() > 0.1, "too similar"
    assert (nearest - targets).square().sum() < 0.8 * (images - targets).square().sum()
    torch.testing.assert_close(wide(nearest), wide(images), atol=1e-7, rtol=0)


def test_nearest_image_agrees_with_slsqp(wide, pair):
    """scipy's SLSQP solves the same problem, patch by patch."""
    images, targets, nearest = pair
    basis = ExactNullspace(wide).basis.flatten(1).numpy()

    def patches(x):
        return torch.nn.functional.unfold(x[:1], 4, stride=4)[0].T.numpy()

    for patch, target, ours in zip(patches(images), patches(targets), patches(nearest), strict=True):

        def value(c, patch=patch, target=target):
            return 0.5 * ((patch + basis.T @ c - target) ** 2).sum()

        box = [
            {"type": "ineq", "fun": lambda c, patch=patch: patch + basis.T @ c, "jac": lambda c: basis.T},
            {"type": "ineq", "fun": lambda c, patch=patch: 1 - patch - basis.T @ c, "jac": lambda c: -basis.T},
        ]
        theirs = minimize(
            value, np.zeros(len(basis)), method="SLSQP", constraints=box, options={"ftol": 1e-12, "maxiter": 500},
            jac=lambda c, patch=patch, target=target: basis @ (patch + basis.T @ c - target),
        )  # fmt: skip
        assert theirs.success
        assert 0.5 * ((ours - target) ** 2).sum() == pytest.approx(theirs.fun, abs=1e-6)


def test_empty_nullspace_returns_the_image(images):
    null = ExactNullspace(tiny_vit().double())  # patches of 12 values, embeddings of width 24
    assert null.dimension == 0
    torch.testing.assert_close(null.nearest(images, 1 - images), images)
    torch.testing.assert_close(null.project(images), torch.zeros_like(images))


def test_images_outside_0_to_1_raise(wide, images):
    with pytest.raises(UserError, match=r"should be in \[0, 1\]"):
        ExactNullspace(wide).nearest(images + 1, images)


def test_lower_rank_gives_larger_nullspace(wide):
    with torch.no_grad():
        wide.model.patch_embed.proj.weight[20:] = wide.model.patch_embed.proj.weight[:4] * (1 + 1e-9)
    assert ExactNullspace(wide).dimension == 28
    assert ExactNullspace(wide, tolerance=0).dimension < 28


def test_overlapping_patches_raise():
    vit = build_vit("pvt_v2_b0", num_classes=2, img_size=64)
    with pytest.raises(UserError, match="PyramidVisionTransformerV2 is not one linear map per patch"):
        ExactNullspace(vit)


def test_image_size_that_is_not_a_multiple_of_the_patch_raises(wide):
    with pytest.raises(UserError, match=r"10 x 8 pixels cannot be split into patches of \(4, 4\)"):
        ExactNullspace(wide).project(torch.zeros(1, 3, 10, 8))


@pytest.mark.parametrize("patch", ["white", "binary", "near white"])
def test_nearest_image_at_the_bounds(wide, patch):
    """Saturated pixels leave no interior point, where the multipliers of the dual may diverge."""
    draw = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    images = {"white": torch.ones_like(draw), "binary": draw.round(), "near white": 1 - 1e-3 * draw}[patch]
    nearest = ExactNullspace(wide).nearest(images, 1 - draw)
    assert nearest.min() >= 0
    assert nearest.max() <= 1
    torch.testing.assert_close(wide(nearest), wide(images), atol=1e-5, rtol=0)
