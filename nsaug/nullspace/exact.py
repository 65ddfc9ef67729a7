"""The exact nullspace of a patch embedding: changes of an image that no patch embedding notices (arXiv 2403.10476).

A patch embedding that begins with one linear map per patch, W p + b with D outputs for the 3 h w values of a patch, has
a nullspace of dimension 3 h w - rank(W) for each patch: whatever lies in it changes the image, and no output at all.
Everything is computed in float64, in pixel units: the normalisation that stands before W scales its channels.
"""

import itertools
from typing import Any

import osqp
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace.pixel_space import patch_convolution
from nsaug.utils.errors import UserError
from nsaug.utils.types import Fraction, validate_args

TOLERANCE = 1e-6
"""Singular values below this share of the largest one count as 0: float32 weights hold about seven digits."""

PRECISE = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 20000, "verbose": False}
"""Of OSQP. A bound may be missed by that little, which the clamp at the end mends."""


class ExactNullspace:
    """The nullspace of a ViT's patch embedding.

    Args:
        vit: its weights are read once; changed weights want a new object.
        tolerance: singular values below this share of the largest one count as 0.

    Attributes:
        patch: (h, w), a patch's size in pixels.
        width: D, the values of an embedding.
        rank: numerical rank of W.
        dimension: of the nullspace of one patch, 3 h w - rank.
        basis: (dimension, 3, h, w) in float64, orthonormal, in pixel units (images in [0, 1]).

    Raises:
        UserError: the patch embedding does not begin with one linear map per patch, and only that (overlapping
            patches, several convolutions).
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
        # Per channel: a change of a pixel by 1 is one of 1 / std for the convolution.
        matrix = (convolution.weight.detach().double() / vit.std.double().view(1, -1, 1, 1)).flatten(1)
        self.width = matrix.shape[0]
        _, values, right = torch.linalg.svd(matrix, full_matrices=True)
        self.rank = int((values > tolerance * values.max()).sum())
        self.dimension = matrix.shape[1] - self.rank
        self.basis = right[self.rank :].unflatten(1, (-1, *self.patch))

    def project(self, change: Tensor) -> Tensor:
        """The part of a change of images that no patch embedding notices.

        Args:
            change: (B, 3, H, W) in pixel units, H and W multiples of the patch's.

        Returns:
            The nearest (B, 3, H, W) in the nullspace, in float64; an image plus it may leave [0, 1].
        """
        patches = self._patches(change)
        flat = self.basis.flatten(1).to(change.device)
        return self._images(flat.T @ (flat @ patches), change)

    def nearest(self, images: Tensor, targets: Tensor) -> Tensor:
        """The images nearest to the targets whose patch embeddings are those of `images`: other images, equal logits.

        For each patch the quadratic programme min ||p + N c - t||² with 0 <= p + N c <= 1, N the basis, by OSQP
        (Stellato et al., arXiv 1711.08013). The embeddings are equal by construction, up to
        about 1e-9.

        Args:
            images, targets: (B, 3, H, W) in [0, 1].

        Returns:
            (B, 3, H, W) in [0, 1], in float64, on the CPU. A fraction of a second per patch at 16 x 16 pixels.

        Raises:
            UserError: values outside [0, 1], or another grid of pixels.
            RuntimeError: the solver gives up.
        """
        if min(images.min(), targets.min()) < 0 or max(images.max(), targets.max()) > 1:
            raise UserError("images and targets have to lie in [0, 1]")
        if self.dimension == 0:
            return images.double().cpu()
        start, wanted = self._patches(images).cpu(), self._patches(targets).cpu()  # (B, 3 h w, N)
        basis = self.basis.flatten(1).cpu()
        found, solver = start.clone(), None
        for image, place in itertools.product(range(len(start)), range(start.shape[2])):
            patch, target = start[image, :, place].numpy(), wanted[image, :, place].numpy()
            told = {"q": -(basis.numpy() @ (target - patch)), "l": -patch, "u": 1 - patch}
            if solver is None:  # the matrices are those of all patches, and factorised once
                solver = osqp.OSQP()
                matrices = {"P": scipy.sparse.identity(self.dimension, format="csc"), "A": _sparse(basis.T)}
                solver.setup(**matrices, **told, **PRECISE)
            else:
                solver.update(**told)
            result = solver.solve()
            if result.info.status != "solved":
                raise RuntimeError(f"OSQP: {result.info.status} at patch {place} of image {image}")
            found[image, :, place] += basis.T @ torch.from_numpy(result.x)
        return self._images(found, images.cpu()).clamp(0, 1)

    def _patches(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.patch[0] or width % self.patch[1]:
            raise UserError(f"images of {height} x {width} pixels are not made of patches of {self.patch} pixels")
        return F.unfold(images.double(), self.patch, stride=self.patch)

    def _images(self, patches: Tensor, like: Tensor) -> Tensor:
        return F.fold(patches, like.shape[-2:], self.patch, stride=self.patch)


def _sparse(matrix: Tensor) -> Any:
    return scipy.sparse.csc_matrix(matrix.numpy())
