"""Noise on the patch embeddings as a change of the image: what one looks at, and what one cannot see."""

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import NoisyViT


def patch_convolution(vit: NoisyViT) -> nn.Conv2d | None:
    """The convolution that a patch embedding begins with: one linear map per patch, without overlap; else None."""
    convolutions = [part for part in vit.model.get_submodule("patch_embed").modules() if isinstance(part, nn.Conv2d)]
    if len(convolutions) != 1:
        return None
    (convolution,) = convolutions
    tiles = convolution.kernel_size == convolution.stride and convolution.padding in ((0, 0), "valid")
    return convolution if tiles and convolution.groups == 1 else None


def patch_projection(vit: NoisyViT) -> nn.Conv2d | None:
    """That convolution where it is the whole patch embedding, with no norm behind it; else None."""
    norms = [part for part in vit.model.get_submodule("patch_embed").modules() if isinstance(part, nn.LayerNorm)]
    return None if norms else patch_convolution(vit)


@torch.no_grad()
def to_pixels(vit: NoisyViT, noise: Tensor) -> Tensor | None:
    """The smallest change of pixels whose patch embeddings come nearest to `noise` (by the pseudo-inverse).

    Where a patch has fewer values than its embedding, most of the noise is no image's: this is its shadow.

    Args:
        noise: (B, N, D), in units of the patch embeddings.

    Returns:
        (B, 3, H, W) in pixel units, not clamped; None where the patch embedding is not one linear map per patch.
    """
    convolution = patch_projection(vit)
    if convolution is None or noise.dim() != 3:
        return None
    weight = convolution.weight.flatten(1).double()
    patches = noise.double() @ torch.linalg.pinv(weight).T  # (B, N, 3 * h * w)
    size = vit.data_config["input_size"][1:]
    change = nn.functional.fold(patches.transpose(1, 2), size, convolution.kernel_size, stride=convolution.stride)
    return change.to(noise.dtype) * vit.std
