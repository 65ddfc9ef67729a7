"""Conversion of noise on the patch embeddings to a change of the image, for display."""

import torch
from torch import Tensor, nn

from nsaug.models.noisy_vit import NoisyViT


def patch_convolution(vit: NoisyViT) -> nn.Conv2d | None:
    """Return the convolution of a patch embedding that is one linear map per patch without overlap; else None."""
    convolutions = [module for module in vit.patch_embed.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) != 1:
        return None
    (convolution,) = convolutions
    tiles = convolution.kernel_size == convolution.stride and convolution.padding in ((0, 0), "valid")
    on_images = convolution.in_channels == 3 and convolution.groups == 1
    return convolution if tiles and on_images else None


def patch_projection(vit: NoisyViT) -> nn.Conv2d | None:
    """Return that convolution if nothing but reshaping follows it in the patch embedding; else None."""
    leaves = [module for module in vit.patch_embed.modules() if not list(module.children())]
    return patch_convolution(vit) if all(isinstance(leaf, nn.Conv2d | nn.Identity) for leaf in leaves) else None


@torch.no_grad()
def to_pixels(vit: NoisyViT, noise: Tensor) -> Tensor | None:
    """Compute the smallest change of pixels whose patch embeddings are nearest to `noise`, by the pseudo-inverse.

    If a patch has fewer values than its embedding, no image change produces most of the noise; the result is then its
    projection.

    Args:
        noise: (B, N, D), in units of the patch embeddings.

    Returns:
        (B, 3, H, W) in pixel units, not clamped; None if the patch embedding is not one linear map per patch.
    """
    convolution = patch_projection(vit)
    if convolution is None or noise.dim() != 3:
        return None
    weight = convolution.weight.flatten(1).double()
    patches = noise.double() @ torch.linalg.pinv(weight).T  # (B, N, 3 * h * w)
    size = vit.data_config["input_size"][1:]
    change = nn.functional.fold(patches.transpose(1, 2), size, convolution.kernel_size, stride=convolution.stride)
    return change.to(noise.dtype) * vit.std
