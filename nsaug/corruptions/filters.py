"""Blurs, zooms, color transforms and sampling for batches of images (B, C, H, W)."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(images: Tensor, sigma: float, truncate: float = 4.0, mode: str = "replicate") -> Tensor:
    """Blur by a Gaussian, cut off at `truncate` sigmas, as in scipy.ndimage.

    Two matrix products, which are faster than a convolution at these sizes.

    Args:
        mode: extends the border by the last pixel (`replicate`) or by the mirrored image (`symmetric`).
    """
    if int(truncate * sigma + 0.5) == 0:
        return images
    rows, columns = (_gaussian_matrix(side, sigma, truncate, mode).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


@functools.lru_cache(maxsize=64)
def _gaussian_matrix(side: int, sigma: float, truncate: float, mode: str) -> Tensor:
    """Blur of one axis as a matrix (side, side): row i holds the weights of all pixels in pixel i."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = (-0.5 * (offsets.double() / sigma) ** 2).exp()
    sources = torch.arange(side)[:, None] + offsets
    if mode == "symmetric":
        sources = sources % (2 * side)
        sources = torch.minimum(sources, 2 * side - 1 - sources)
    sources = sources.clamp(0, side - 1)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, (weights / weights.sum()).expand_as(sources))


def disk_kernel(radius: float, alias_blur: float) -> Tensor:
    """Antialiased disk: a kernel of 17 x 17 pixels, or (2 radius + 1)² for a radius above 8.

    Args:
        radius: in pixels.
        alias_blur: sigma of the Gaussian that smooths the disk's edge.
    """
    offsets = torch.arange(-8, 9) if radius <= 8 else torch.arange(-radius, radius + 1)
    inside = (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).float()
    half = 1 if radius <= 8 else 2
    smooth = (-0.5 * (torch.arange(-half, half + 1) / alias_blur) ** 2).exp()
    smooth = smooth / smooth.sum()
    kernel = F.pad((inside / inside.sum())[None, None], (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(kernel, smooth.view(1, 1, 1, -1)), smooth.view(1, 1, -1, 1))[0, 0]


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter every channel with a kernel (k, k) by FFT, with reflection at the border."""
    radius = kernel.shape[-1] // 2
    height, width = images.shape[-2:]
    if radius < min(height, width):
        padded = F.pad(images, (radius,) * 4, mode="reflect")
    else:
        padded = _reflect_pad(images, radius)
    size = padded.shape[-2:]
    padded_kernel = torch.zeros(size, dtype=images.dtype, device=images.device)
    padded_kernel[: kernel.shape[0], : kernel.shape[1]] = kernel.flip(0, 1).to(images)
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(padded_kernel)
    return torch.fft.irfft2(product, s=size)[..., 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def _reflect_pad(images: Tensor, padding: int) -> Tensor:
    """Reflection padding that, unlike torch's, may be larger than the image."""

    def reflected_indices(size: int) -> Tensor:
        positions = torch.arange(-padding, size + padding, device=images.device) % (2 * size - 2)
        return (size - 1) - (positions - (size - 1)).abs()

    rows, columns = map(reflected_indices, images.shape[-2:])
    return images[..., rows, :][..., columns]


def center_zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the center of the images bilinearly to their own size."""
    height, width = images.shape[-2:]
    inner = [math.ceil(side / factor) for side in (height, width)]
    top, left = ((side - part) // 2 for side, part in zip((height, width), inner, strict=True))
    crop = images[..., top : top + inner[0], left : left + inner[1]]
    outer = [round(part * factor) for part in inner]
    large = F.interpolate(crop, size=outer, mode="bilinear", align_corners=True)
    top, left = ((part - side) // 2 for side, part in zip((height, width), outer, strict=True))
    return large[..., top : top + height, left : left + width]


def motion_blur_image(image: Tensor, radius: int, sigma: float, angle: float) -> Tensor:
    """Blur one image (C, H, W) along a line, as ImageMagick: a half-Gaussian weighted mean of shifts, edges replicated.

    ImageMagick's result has 8 bits, so this one does too.

    Args:
        radius: half the number of shifts, in pixels.
        sigma: of the weights, in pixels.
        angle: direction of the motion, in degrees.
    """
    num_shifts = 2 * radius + 1
    weights = (-0.5 * (torch.arange(num_shifts, dtype=torch.float64) / sigma) ** 2).exp()
    weights = weights / weights.sum()
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, width = image.shape[-2:]
    padded = F.pad(image[None], (num_shifts,) * 4, mode="replicate")[0]
    blurred = torch.zeros_like(image)
    for step in range(num_shifts):
        top, left = num_shifts + math.ceil(step * sin - 0.5), num_shifts + math.ceil(step * cos - 0.5)
        blurred.add_(padded[..., top : top + height, left : left + width], alpha=float(weights[step]))
    return truncate_to_levels(blurred) / 255


def truncate_to_levels(images: Tensor) -> Tensor:
    """Cut values in [0, 1] off to whole levels, 0 to 255, as a conversion of arrays to uint8 does."""
    # The offset keeps whole levels that float32 misses by a rounding error.
    return (images * 255 + 2e-4).floor()


def rgb_to_gray(images: Tensor) -> Tensor:
    """Luma, (B, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)


def set_hsv_value(images: Tensor, value: Tensor) -> Tensor:
    """Replace the value of HSV by (B, 1, H, W), hue and saturation unchanged."""
    old_value = images.amax(-3, keepdim=True)
    return torch.where(old_value > 0, images * (value / old_value.clamp_min(1e-12)), value)


def scale_hsv_saturation(images: Tensor, factor: float, offset: float) -> Tensor:
    """Replace the saturation s of HSV by factor * s + offset, clipped to [0, 1]; the hue of gray is red."""
    value, minimum = images.amax(-3, keepdim=True), images.amin(-3, keepdim=True)
    saturation = (value - minimum) / value.clamp_min(1e-12)
    saturation = (saturation * factor + offset).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device, dtype=images.dtype).view(3, 1, 1)
    # How far every channel is below the value, relative to the lowest one.
    relative_gap = torch.where(value > minimum, (value - images) / (value - minimum).clamp_min(1e-12), red)
    return value * (1 - saturation * relative_gap)


def sample_bilinear(images: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Sample images bilinearly at positions x, y (B, H, W), in pixels.

    Args:
        mode: mirrors the images at their edge (`symmetric`) or at their last pixel (`reflect`).
    """
    height, width = images.shape[-2:]
    if mode == "reflect":
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=mode == "reflect")
