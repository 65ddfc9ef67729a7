"""The exact nullspace of a patch embedding: changes of an image that no patch embedding notices (arXiv 2403.10476).

A patch embedding that begins with one linear map per patch, W p + b with D outputs for the 3 h w values of a patch, has
a nullspace of dimension 3 h w - rank(W) for each patch: whatever lies in it changes the image, and no output at all.
Everything is computed in float64, in pixel units: the normalisation that stands before W scales its channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nsaug.nullspace.pixels import patch_convolution
from nsaug.settings import NsaugError, Share, validated
from nsaug.vit import ViT

TOLERANCE = 1e-6
"""Singular values below this share of the largest one count as 0: float32 weights hold about seven digits."""


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
        NsaugError: the patch embedding does not begin with one linear map per patch, and only that (overlapping
            patches, several convolutions).
    """

    @validated
    def __init__(self, vit: ViT, tolerance: Share = TOLERANCE) -> None:
        convolution = patch_convolution(vit)
        if convolution is None:
            raise NsaugError(
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
        height, width = change.shape[-2:]
        if height % self.patch[0] or width % self.patch[1]:
            raise NsaugError(f"images of {height} x {width} pixels are not made of patches of {self.patch} pixels")
        patches = F.unfold(change.double(), self.patch, stride=self.patch)  # (B, 3 h w, N)
        flat = self.basis.flatten(1).to(change.device)
        kept = flat.T @ (flat @ patches)
        return F.fold(kept, (height, width), self.patch, stride=self.patch)
