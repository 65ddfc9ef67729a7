"""The exact nullspace of a patch embedding: image changes that leave all patch embeddings equal (arXiv 2403.10476).

A patch embedding that starts with one linear map per patch, W p + b with D outputs for the 3 h w values of a patch p,
has a nullspace of dimension 3 h w - rank(W) per patch. All computations are in float64 and in pixel units: the
normalization before W scales its columns by channel.
"""

from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace.pixel_space import patch_convolution
from nsaug.utils.errors import UserError
from nsaug.utils.types import Fraction, validate_args

TOLERANCE = 1e-6
"""Singular values below this fraction of the largest count as 0; float32 weights have about seven digits."""

MAX_ERROR = 1e-5
"""Largest accepted error of a nearest patch, in pixel units along an orthonormal basis."""

LBFGS_OPTIONS = {"maxiter": 20000, "maxfun": 40000, "maxcor": 20, "ftol": 0.0, "gtol": 1e-10}


class ExactNullspace:
    """The nullspace of a ViT's patch embedding.

    Args:
        vit: the model; its weights are read once, at construction.
        tolerance: singular values below this fraction of the largest count as 0.

    Attributes:
        patch: (h, w), the patch size in pixels.
        width: D, the embedding width.
        rank: numerical rank of W.
        dimension: dimension of the nullspace of one patch, 3 h w - rank.
        basis: (dimension, 3, h, w) in float64, orthonormal, in pixel units (images in [0, 1]).

    Raises:
        UserError: the patch embedding does not start with one linear map per patch, as with overlapping patches or
            several convolutions.
    """

    @validate_args
    def __init__(self, vit: NoisyViT, tolerance: Fraction = TOLERANCE) -> None:
        convolution = patch_convolution(vit)
        if convolution is None:
            raise UserError(
                f"the patch embedding of {type(vit.model).__name__} is not one linear map per patch"
                " (overlapping patches, or several convolutions): its exact nullspace is not computed"
            )
        size: Any = convolution.kernel_size
        self.patch: tuple[int, int] = size
        # A pixel change of 1 is a change of 1 / std in the input of the convolution.
        matrix = (convolution.weight.detach().double() / vit.std.double().view(1, -1, 1, 1)).flatten(1)
        self.width = matrix.shape[0]
        _, values, right = torch.linalg.svd(matrix, full_matrices=True)
        self.rank = int((values > tolerance * values.max()).sum())
        self.dimension = matrix.shape[1] - self.rank
        self.basis = right[self.rank :].unflatten(1, (-1, *self.patch))
        self._row_space = right[: self.rank]  # orthonormal, (rank, 3 h w)

    def project(self, change: Tensor) -> Tensor:
        """Project a change of images onto the nullspace.

        Args:
            change: (B, 3, H, W) in pixel units, H and W multiples of the patch size.

        Returns:
            The nearest change in the nullspace, (B, 3, H, W) in float64. An image plus this change may leave [0, 1].
        """
        patches = self._patches(change)
        basis = self.basis.flatten(1).to(change.device)
        return self._images(basis.T @ (basis @ patches), change)

    def nearest(self, images: Tensor, targets: Tensor) -> Tensor:
        """Find the images nearest to `targets` that have the patch embeddings, and so the logits, of `images`.

        Solves min ||z - t||^2 with R z = R p and 0 <= z <= 1 for every patch p with target t, where the rows of R are
        an orthonormal basis of the row space of W. The dual is smooth: z = clip(t + R^T y, 0, 1) for the multipliers y
        that maximize it, found by L-BFGS.

        Args:
            images: (B, 3, H, W) in [0, 1].
            targets: of the same shape and range.

        Returns:
            (B, 3, H, W) in [0, 1], in float64, on the CPU. The patch embeddings agree to about 1e-8; rounding the
            images to 8 bits changes the logits. Takes a few milliseconds per patch of 16 x 16 pixels.

        Raises:
            UserError: values outside [0, 1], or H and W that are not multiples of the patch size.
            RuntimeError: L-BFGS does not converge.
        """
        if min(images.min(), targets.min()) < 0 or max(images.max(), targets.max()) > 1:
            raise UserError("images and targets should be in [0, 1]: pass them before normalization")
        if self.dimension == 0:
            return images.double().cpu()
        patches, goals = self._patches(images).cpu(), self._patches(targets).cpu()  # (B, 3 h w, N)
        rows = self._row_space.cpu().numpy()
        result = torch.empty_like(patches)
        for image in range(len(patches)):
            for index in range(patches.shape[2]):
                patch, goal = patches[image, :, index].numpy(), goals[image, :, index].numpy()
                result[image, :, index] = torch.from_numpy(_nearest_patch(rows, patch, goal))
        return self._images(result, images.cpu())

    def _patches(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.patch[0] or width % self.patch[1]:
            raise UserError(f"images of {height} x {width} pixels cannot be split into patches of {self.patch} pixels")
        return F.unfold(images.double(), self.patch, stride=self.patch)

    def _images(self, patches: Tensor, like: Tensor) -> Tensor:
        return F.fold(patches, like.shape[-2:], self.patch, stride=self.patch)


def _nearest_patch(rows: np.ndarray, patch: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Minimize ||z - goal||^2 subject to rows z = rows patch and 0 <= z <= 1."""
    fixed = rows @ patch

    def negative_dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        unclipped = goal + rows.T @ multipliers
        z = unclipped.clip(0, 1)
        value = 0.5 * (unclipped**2 - (unclipped - z) ** 2).sum() - multipliers @ fixed
        return value, rows @ z - fixed

    result = scipy.optimize.minimize(
        negative_dual, rows @ (patch - goal), jac=True, method="L-BFGS-B", options=LBFGS_OPTIONS
    )
    nearest = (goal + rows.T @ result.x).clip(0, 1)
    error = np.abs(rows @ nearest - fixed).max(initial=0)
    if error > MAX_ERROR:
        raise RuntimeError(f"L-BFGS: the embedding of the nearest patch is off by {error:.1e} ({result.message})")
    return nearest
