"""Blurs, zooms and colour spaces for batches of images (B, C, H, W), as the corruptions need them."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian(images: Tensor, sigma: float, truncate: float = 4.0, edge: str = "replicate") -> Tensor:
    """A Gaussian blur; beyond the border lies the last pixel (`replicate`) or the image mirrored (`symmetric`).

    As two products with matrices, which beats a convolution at these sizes.
    """
    if int(truncate * sigma + 0.5) == 0:
        return images
    down, across = (_blur(side, sigma, truncate, edge).to(images) for side in images.shape[-2:])
    return down @ images @ across.T


@functools.lru_cache(maxsize=64)
def _blur(side: int, sigma: float, truncate: float, edge: str) -> Tensor:
    """(side, side): row i holds what each pixel contributes to pixel i."""
    radius = int(truncate * sigma + 0.5)
    reach = torch.arange(-radius, radius + 1)
    weights = (-0.5 * (reach.double() / sigma) ** 2).exp()
    place = torch.arange(side)[:, None] + reach
    if edge == "symmetric":
        place = place % (2 * side)
        place = torch.minimum(place, 2 * side - 1 - place)
    place = place.clamp(0, side - 1)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, place, (weights / weights.sum()).expand_as(place))


def disk(radius: float, edge: float) -> Tensor:
    """A disk's kernel, its edge blurred; of 17 x 17 pixels, or more where the radius is above 8."""
    reach = torch.arange(-8, 9) if radius <= 8 else torch.arange(-radius, radius + 1)
    inside = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).float()
    size = 1 if radius <= 8 else 2  # half of the edge's kernel
    smooth = (-0.5 * (torch.arange(-size, size + 1) / edge) ** 2).exp()
    smooth = smooth / smooth.sum()
    kernel = F.pad((inside / inside.sum())[None, None], (size,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(kernel, smooth.view(1, 1, 1, -1)), smooth.view(1, 1, -1, 1))[0, 0]


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with a kernel (k, k), the border mirrored at its last pixel; by Fourier transforms."""
    reach = kernel.shape[-1] // 2
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach,) * 4, mode="reflect") if reach < min(height, width) else _far(images, reach)
    size = padded.shape[-2:]
    whole = torch.zeros(size, dtype=images.dtype, device=images.device)
    whole[: kernel.shape[0], : kernel.shape[1]] = kernel.flip(0, 1).to(images)
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(whole)
    return torch.fft.irfft2(product, s=size)[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def _far(images: Tensor, reach: int) -> Tensor:
    """Mirrored more than once: an image that is smaller than the kernel."""
    rows, columns = (
        (size - 1) - ((torch.arange(-reach, size + reach, device=images.device) % (2 * size - 2)) - (size - 1)).abs()
        for size in images.shape[-2:]
    )
    return images[..., rows, :][..., columns]


def zoomed(images: Tensor, factor: float, size: tuple[int, int] | None = None) -> Tensor:
    """The middle of the images enlarged by a factor, bilinearly; cut to `size`, from the upper left corner."""
    height, width = images.shape[-2:]
    inner = [math.ceil(side / factor) for side in (height, width)]
    top, left = ((side - part) // 2 for side, part in zip((height, width), inner, strict=True))
    crop = images[..., top : top + inner[0], left : left + inner[1]]
    outer = [round(part * factor) for part in inner]
    large = F.interpolate(crop, size=outer, mode="bilinear", align_corners=True)
    return large if size is None else large[..., : size[0], : size[1]]


def motion_blurred(image: Tensor, radius: int, sigma: float, angle: float) -> Tensor:
    """One image (C, H, W), moved along a line: the weighted mean of its shifts, edges carried on.

    Args:
        angle: of the motion, in degrees.
    """
    width = 2 * radius + 1
    weights = (-0.5 * (torch.arange(width, dtype=torch.float64) / sigma) ** 2).exp()
    weights = weights / weights.sum()
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, length = image.shape[-2:]
    padded = F.pad(image[None], (width,) * 4, mode="replicate")[0]
    blurred = torch.zeros_like(image)
    for step in range(width):
        dy, dx = -math.ceil(step * down - 0.5), -math.ceil(step * right - 0.5)
        if abs(dy) >= height or abs(dx) >= length:
            break
        top, left = width - dy, width - dx
        blurred.add_(padded[..., top : top + height, left : left + length], alpha=float(weights[step]))
    return blurred


def grey(images: Tensor) -> Tensor:
    """Luma, (B, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)


def with_value(images: Tensor, value: Tensor) -> Tensor:
    """The images with another value (of hue, saturation and value), (B, 1, H, W)."""
    before = images.amax(-3, keepdim=True)
    return torch.where(before > 0, images * (value / before.clamp_min(1e-12)), value)


def with_saturation(images: Tensor, factor: float, offset: float) -> Tensor:
    """The images with saturation s turned into factor * s + offset, cut to [0, 1]; grey has the hue of red."""
    value, least = images.amax(-3, keepdim=True), images.amin(-3, keepdim=True)
    saturation = (value - least) / value.clamp_min(1e-12)
    wanted = (saturation * factor + offset).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device, dtype=images.dtype).view(3, 1, 1)
    lacking = torch.where(value > least, (value - images) / (value - least).clamp_min(1e-12), red)
    return value * (1 - wanted * lacking)


def bilinear(images: Tensor, x: Tensor, y: Tensor, edge: str) -> Tensor:
    """The images at positions (B, H, W) in pixels; beyond the border mirrored, `symmetric` or `reflect`."""
    height, width = images.shape[-2:]
    if edge == "reflect":
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=edge == "reflect")
