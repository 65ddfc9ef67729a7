"""The exact nullspace against scipy's, and against what a model says of images that differ by it."""

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
NULLITY = {  # FACTS of random weights: patch values less width
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
    """Patches of 4 x 4 pixels, 48 values, seen through 24: half of it is nullspace. Channels have their own scales."""
    return tiny_vit(patch_size=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5)).double().eval()


@pytest.mark.parametrize("name", NULLITY)
def test_the_dimension_by_architecture(name):
    args = {"depths": (1, 1, 1, 1)} if "swin" in name else SMALL
    vit = build_vit(name, num_classes=2, args=args, img_size=224)
    assert ExactNullspace(vit).dimension == NULLITY[name]


def test_the_basis_spans_what_scipy_finds(wide):
    found = ExactNullspace(wide)
    assert (found.patch, found.width, found.rank, found.dimension) == ((4, 4), 24, 24, 24)
    basis = found.basis.flatten(1).numpy()
    np.testing.assert_allclose(basis @ basis.T, np.eye(24), atol=1e-12)
    scale = 1 / np.repeat([0.2, 0.25, 0.5], 16)
    theirs = null_space(wide.model.patch_embed.proj.weight.detach().flatten(1).numpy() * scale)
    assert subspace_angles(basis.T, theirs).max() < 1e-6


def test_what_lies_in_it_changes_the_image_and_no_output(wide, images):
    found = ExactNullspace(wide)
    change = found.project(torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert change.square().mean().sqrt() > 0.5
    torch.testing.assert_close(wide(images + change), wide(images), atol=1e-9, rtol=0)
    # scaled by channel and not, the two nullspaces differ
    assert not torch.allclose(wide.model(images + change), wide.model(images), atol=1e-3)


def test_the_projection_is_the_nearest_point(wide):
    found = ExactNullspace(wide)
    change = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = found.project(change)
    torch.testing.assert_close(found.project(inside), inside)
    rest = (change - inside).unfold(2, 4, 4).unfold(3, 4, 4)  # (2, 3, 2, 2, 4, 4)
    torch.testing.assert_close(
        torch.einsum("bcijhw,kchw->bijk", rest, found.basis), torch.zeros(2, 2, 2, 24, dtype=torch.float64)
    )


@pytest.fixture
def pair(wide, images):
    targets = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return images[:2], targets, ExactNullspace(wide).nearest(images[:2], targets)


def test_two_different_images_get_the_same_logits(wide, pair):
    images, targets, found = pair
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - images).abs().mean() > 0.1, "visibly another image"
    assert (found - targets).square().sum() < 0.8 * (images - targets).square().sum()
    torch.testing.assert_close(wide(found), wide(images), atol=1e-9, rtol=0)


def test_none_is_nearer_to_the_target(wide, pair):
    """scipy's SLSQP on the same programme, patch by patch."""
    images, targets, found = pair
    basis = ExactNullspace(wide).basis.flatten(1).numpy()

    def cut(x):
        return torch.nn.functional.unfold(x[:1], 4, stride=4)[0].T.numpy()

    for patch, target, ours in zip(cut(images), cut(targets), cut(found), strict=True):

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


def test_where_there_is_no_nullspace_nothing_but_the_image_itself_will_do(images):
    null = ExactNullspace(tiny_vit().double())  # 12 values of a patch, 24 outputs
    assert null.dimension == 0
    torch.testing.assert_close(null.nearest(images, 1 - images), images)
    torch.testing.assert_close(null.project(images), torch.zeros_like(images))


def test_images_outside_of_the_box_are_refused(wide, images):
    with pytest.raises(UserError, match=r"have to lie in \[0, 1\]"):
        ExactNullspace(wide).nearest(images + 1, images)


def test_weights_of_a_lower_rank_have_a_larger_nullspace(wide):
    with torch.no_grad():
        wide.model.patch_embed.proj.weight[20:] = wide.model.patch_embed.proj.weight[:4] * (1 + 1e-9)
    assert ExactNullspace(wide).dimension == 28
    assert ExactNullspace(wide, tolerance=0).dimension < 28


def test_what_is_not_one_linear_map_is_refused():
    vit = build_vit("pvt_v2_b0", num_classes=2, img_size=64)
    with pytest.raises(UserError, match="PyramidVisionTransformerV2 is not one linear map per patch"):
        ExactNullspace(vit)


def test_images_of_another_grid_are_refused(wide):
    with pytest.raises(UserError, match=r"10 x 8 pixels are not made of patches of \(4, 4\)"):
        ExactNullspace(wide).project(torch.zeros(1, 3, 10, 8))
