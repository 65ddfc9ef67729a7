"""The 19 common corruptions of Hendrycks and Dietterich (arXiv 1903.12261).

Every corruption has a function `apply(images, params, constants)`, from images (B, 3, H, W) in [0, 1], the random
parameters of every image and the constants of a severity (severities.py) to corrupted images, not yet clipped. One with
random parameters also has a function that samples those of one image.
"""

import functools
import importlib.resources
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsaug.corruptions import filters
from nsaug.corruptions.severities import MAX_CIFAR_SIZE
from nsaug.utils.optional_imports import optional_import

Size = tuple[int, int]
Params = dict[str, Tensor]
"""Random parameters of one image by name, on the CPU."""


@dataclass(frozen=True)
class CorruptionSpec:
    """The two functions of a corruption."""

    make_params: Callable[[Any, Size, torch.Generator], Params]
    """Samples the random parameters of one image from constants, size (H, W) and generator."""
    apply: Callable[[Tensor, list[Params], Any], Tensor]


def stack_params(params: list[Params], name: str, like: Tensor) -> Tensor:
    """One parameter of all images as a batch, with the device and dtype of `like`."""
    return torch.stack([own[name] for own in params]).to(like)


def no_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {}


def normal_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"normal": torch.randn(3, *size, generator=generator)}


def gaussian_noise(images: Tensor, params: list[Params], std: float) -> Tensor:
    return images + std * stack_params(params, "normal", images)


def speckle_noise(images: Tensor, params: list[Params], std: float) -> Tensor:
    return images + images * std * stack_params(params, "normal", images)


def shot_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"uniform": torch.rand(3, *size, generator=generator)}


def shot_noise(images: Tensor, params: list[Params], photons: float) -> Tensor:
    """Poisson counts by inverse transform sampling, for the 256 levels of 8-bit images."""
    level = (images * 255).round().long()
    uniform = torch.stack([own["uniform"] for own in params]).to(images.device).double()
    table = _poisson_cdf(photons).to(images.device)
    # The rows ascend one after another, so that a single search covers all levels.
    index = torch.searchsorted(table.flatten(), uniform + 2 * level, right=True)
    return (index - level * table.shape[1]).to(images.dtype) / photons


@functools.cache
def _poisson_cdf(photons: float) -> Tensor:
    """Row l, column k: P(count <= k) at level l of 255, plus the offset 2 l."""
    rate = torch.arange(256, dtype=torch.float64) / 255 * photons
    num_counts = int(photons + 12 * math.sqrt(photons) + 12)
    counts = torch.arange(num_counts, dtype=torch.float64)
    log_prob = torch.xlogy(counts, rate[:, None]) - rate[:, None] - torch.lgamma(counts + 1)
    return log_prob.exp().cumsum(1).clamp(max=1) + 2 * torch.arange(256)[:, None]


def impulse_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {name: torch.rand(3, *size, generator=generator) for name in ("hit", "salt")}


def impulse_noise(images: Tensor, params: list[Params], fraction: float) -> Tensor:
    """Salt-and-pepper noise: a fraction of the values becomes 0 or 1."""
    hit = torch.stack([own["hit"] for own in params]).to(images.device) <= fraction
    salt = torch.stack([own["salt"] for own in params]).to(images.device) <= 0.5
    return torch.where(hit, salt.to(images), images)


def gaussian_blur(images: Tensor, params: list[Params], sigma: float) -> Tensor:
    return filters.gaussian_blur(images, sigma)


def defocus_blur(images: Tensor, params: list[Params], constants: tuple[float, float]) -> Tensor:
    return filters.convolve(images, filters.disk_kernel(*constants))


def glass_params(constants: tuple[float, int, int], size: Size, generator: torch.Generator) -> Params:
    _, max_shift, iterations = constants
    shape = (iterations, max(0, size[0] - 2 * max_shift), max(0, size[1] - 2 * max_shift), 2)
    return {"shifts": torch.randint(-max_shift, max_shift, shape, generator=generator, dtype=torch.int8)}


def glass_blur(images: Tensor, params: list[Params], constants: tuple[float, int, int]) -> Tensor:
    sigma, max_shift, _ = constants
    blurred = filters.truncate_to_levels(filters.gaussian_blur(images, sigma)).byte()
    pixels = blurred.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    shuffle = _compile_shuffle()
    for image, own in zip(pixels, params, strict=True):
        shuffle(image, own["shifts"].numpy(), max_shift)
    shuffled = torch.from_numpy(pixels).to(images.device).permute(0, 3, 1, 2).to(images.dtype) / 255
    return filters.gaussian_blur(shuffled, sigma)


@functools.cache
def _compile_shuffle() -> Any:
    numba = optional_import("corruptions", "numba")

    @numba.njit(cache=False)
    def shuffle(pixels: Any, shifts: Any, max_shift: int) -> None:
        """Copy to every pixel a nearby one, in place and from the last pixel to the first, so that copies spread."""
        height, width = pixels.shape[:2]
        for iteration in range(shifts.shape[0]):
            for row in range(shifts.shape[1]):
                for column in range(shifts.shape[2]):
                    h, w = height - max_shift - row, width - max_shift - column
                    dx, dy = shifts[iteration, row, column]
                    for channel in range(3):
                        pixels[h, w, channel] = pixels[h + dy, w + dx, channel]

    return shuffle


def angle_params(low: float, high: float) -> Callable[[Any, Size, torch.Generator], Params]:
    """Make a function that samples an angle from [low, high), in degrees."""

    def make_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
        return {"angle": low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)}

    return make_params


def motion_blur(images: Tensor, params: list[Params], constants: tuple[int, float]) -> Tensor:
    blurred = [
        filters.motion_blur_image(image, *constants, angle=float(own["angle"]))
        for image, own in zip(images, params, strict=True)
    ]
    return torch.stack(blurred)


def zoom_blur(images: Tensor, params: list[Params], constants: tuple[float, float]) -> Tensor:
    factors = np.arange(1, *constants)
    total = images.clone()
    for factor in factors:
        total += filters.center_zoom(images, float(factor))
    return total / (len(factors) + 1)


def snow_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {
        "normal": torch.randn(1, *size, generator=generator),
        **angle_params(-135, -45)(constants, size, generator),
    }


def snow(images: Tensor, params: list[Params], constants: tuple[float, ...]) -> Tensor:
    mean, std, zoom, threshold, radius, sigma, image_weight = constants
    layer = filters.center_zoom(mean + std * stack_params(params, "normal", images), zoom)
    layer = torch.where(layer < threshold, 0, layer).clamp(0, 1)
    layer = motion_blur(filters.truncate_to_levels(layer) / 255, params, (int(radius), sigma))
    whitened = torch.maximum(images, filters.rgb_to_gray(images) * 1.5 + 0.5)
    return image_weight * images + (1 - image_weight) * whitened + layer + layer.rot90(2, (-2, -1))


FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The original scripts bring a sixth picture, which they never draw."""


def frost_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    index = torch.randint(len(FROST_FILES), (), generator=generator)
    height, width = _load_frost(int(index), size).shape[:2]
    top = torch.randint(0, height - size[0], (), generator=generator)
    left = torch.randint(0, width - size[1], (), generator=generator)
    return {"index": index, "top": top, "left": left}


def frost(images: Tensor, params: list[Params], constants: tuple[float, float]) -> Tensor:
    image_weight, frost_weight = constants
    height, width = images.shape[-2:]
    crops = []
    for own in params:
        picture, top, left = _load_frost(int(own["index"]), (height, width)), int(own["top"]), int(own["left"])
        crops.append(torch.from_numpy(picture[top : top + height, left : left + width].copy()))
    layer = torch.stack(crops).permute(0, 3, 1, 2).to(images) / 255
    return image_weight * images + frost_weight * layer


@functools.cache
def _load_frost(index: int, size: Size) -> np.ndarray:
    """Load a picture of frost, (h, w, 3) in uint8, scaled so that an image of `size` can be cropped from it."""
    cv2 = optional_import("corruptions", "cv2")
    optional_import("corruptions", "imagecorruptions")
    file = importlib.resources.files("imagecorruptions") / "frost" / FROST_FILES[index]
    picture = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    if max(size) <= MAX_CIFAR_SIZE:
        scale = 0.2
    else:
        scale = max(1.0, 1.1 * size[0] / picture.shape[0], 1.1 * size[1] / picture.shape[1])
    return cv2.resize(np.ascontiguousarray(picture), dsize=None, fx=scale, fy=scale)


def fog_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    side = 1 << (max(size) - 1).bit_length()
    return {"plasma": 2 * torch.rand(side * side - 1, generator=generator) - 1}


def fog(images: Tensor, params: list[Params], constants: tuple[float, float]) -> Tensor:
    density, decay = constants
    height, width = images.shape[-2:]
    maximum = images.amax((1, 2, 3), keepdim=True)
    clouds = _plasma_fractal(stack_params(params, "plasma", images), decay)[:, None, :height, :width]
    return (images + density * clouds) * maximum / (maximum + density)


def _plasma_fractal(noise: Tensor, decay: float) -> Tensor:
    """Height maps (B, n, n) in [0, 1] by the diamond-square algorithm on a torus, from noise (B, n² - 1) in [-1, 1)."""
    side = math.isqrt(noise.shape[1] + 1)
    field = noise.new_zeros(len(noise), side, side)
    step, roughness, num_used = side, 100.0, 0

    def midpoints(total: Tensor) -> Tensor:
        """Mean of four neighbors, given their sum, plus noise."""
        nonlocal num_used
        count = total[0].numel()
        noisy = total / 4 + roughness * roughness * noise[:, num_used : num_used + count].view_as(total)
        num_used += count
        return noisy

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = midpoints(squares + squares.roll(-1, 2))
        centers, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        vertical = centers + centers.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = midpoints(vertical)
        horizontal = centers + centers.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = midpoints(horizontal)
        step, roughness = half, roughness / decay
    field = field - field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def brightness(images: Tensor, params: list[Params], offset: float) -> Tensor:
    return filters.set_hsv_value(images, (images.amax(-3, keepdim=True) + offset).clamp(0, 1))


def saturate(images: Tensor, params: list[Params], constants: tuple[float, float]) -> Tensor:
    return filters.scale_hsv_saturation(images, *constants)


def contrast(images: Tensor, params: list[Params], factor: float) -> Tensor:
    mean = images.double().mean((-2, -1), keepdim=True).to(images.dtype)
    return (images - mean) * factor + mean


def elastic_params(constants: tuple[float, ...], size: Size, generator: torch.Generator) -> Params:
    shapes = {"field": (2, *size), "corners": (3, 2)}
    return {name: 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1 for name, shape in shapes.items()}


def elastic_transform(images: Tensor, params: list[Params], constants: tuple[float, float, float]) -> Tensor:
    """Map the images by a random affine map, then displace pixels by a smooth random field."""
    alpha, sigma, max_shift = constants
    height, width = images.shape[-2:]
    images = _affine(images, stack_params(params, "corners", images.double()) * max_shift * height)
    field = stack_params(params, "field", images.double())
    field = alpha * height * filters.gaussian_blur(field, sigma * height, truncate=3.0, mode="symmetric")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return filters.sample_bilinear(images, x.to(field) + field[:, 0], y.to(field) + field[:, 1], "symmetric")


def _affine(images: Tensor, shifts: Tensor) -> Tensor:
    """Affine map that moves three corners of a central square by shifts (B, 3, 2), in pixels."""
    height, width = images.shape[-2:]
    third = min(height, width) // 3
    center = torch.tensor([height // 2, width // 2], dtype=torch.float64, device=images.device)
    signs = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64, device=images.device)
    corners = center + third * signs
    ones = torch.ones(len(images), 3, 1, dtype=torch.float64, device=images.device)
    # The inverse map: from pixels of the result to positions in the image.
    inverse = torch.linalg.solve(torch.cat([corners + shifts, ones], -1), corners.expand_as(shifts))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([x, y, torch.ones_like(x)], -1).to(inverse).view(1, -1, 3) @ inverse
    x, y = positions.unflatten(1, (height, width)).unbind(-1)
    return filters.sample_bilinear(images, x, y, "reflect")


def pixelate(images: Tensor, params: list[Params], fraction: float) -> Tensor:
    """Downsample by Pillow's box filter, as matrix products, and upsample by nearest neighbors."""
    height, width = images.shape[-2:]
    rows, columns = (_box_matrix(side, int(side * fraction)).to(images) for side in (height, width))
    # Pillow rounds to 8 bits after both passes, halves upwards.
    small = (images @ columns.T * 255 + 0.5 + 1e-3).floor() / 255
    small = (rows @ small * 255 + 0.5 + 1e-3).floor() / 255
    y, x = (
        ((torch.arange(side) + 0.5) * int(side * fraction) / side).long().to(images.device) for side in (height, width)
    )
    return small[..., y, :][..., x]


@functools.cache
def _box_matrix(side: int, small_side: int) -> Tensor:
    """Box downsampling of one axis as a matrix (small_side, side): means of the pixels whose centers lie in a box."""
    scale = side / small_side
    centers = (torch.arange(small_side, dtype=torch.float64)[:, None] + 0.5) * scale
    offsets = (torch.arange(side, dtype=torch.float64)[None] + 0.5 - centers) / scale
    inside = ((offsets > -0.5) & (offsets <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def jpeg_compression(images: Tensor, params: list[Params], quality: int) -> Tensor:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(decoded).permute(0, 3, 1, 2).to(images) / 255


def spatter_params(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"normal": torch.randn(1, *size, generator=generator, dtype=torch.float64)}


def spatter(images: Tensor, params: list[Params], constants: tuple[float, ...]) -> Tensor:
    """Drops of water, or of mud at the higher severities."""
    mean, std, sigma, threshold, strength, is_mud = constants
    layer = filters.gaussian_blur(mean + std * stack_params(params, "normal", images.double()), sigma)
    layer = torch.where(layer < threshold, 0, layer)
    if is_mud:
        mask = filters.gaussian_blur((layer > threshold).to(images), strength)
        mask = torch.where(mask < 0.8, 0, mask)
        brown = torch.tensor([63, 42, 20], device=images.device, dtype=images.dtype).view(3, 1, 1) / 255
        return images * (1 - mask) + brown * mask
    drops = (layer[:, 0] * 255).byte().cpu().numpy()
    water = torch.stack([torch.from_numpy(_liquid_layer(image)) for image in drops])
    turquoise = torch.tensor([175, 238, 238], device=images.device, dtype=images.dtype).view(3, 1, 1) / 255
    return images + (strength * water[:, None].to(images) * turquoise).clamp(0, 1)


def _liquid_layer(drops: np.ndarray) -> np.ndarray:
    """Opacity of the water, (H, W) in [0, 1], from drops (H, W) in uint8, which are highlighted at their edges."""
    cv2 = optional_import("corruptions", "cv2")
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    highlights = cv2.blur(cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss), (3, 3))
    liquid = drops * highlights.astype(np.float32)
    return liquid / max(float(liquid.max()), 1e-12)


CORRUPTIONS = {
    "gaussian_noise": CorruptionSpec(normal_params, gaussian_noise),
    "shot_noise": CorruptionSpec(shot_params, shot_noise),
    "impulse_noise": CorruptionSpec(impulse_params, impulse_noise),
    "defocus_blur": CorruptionSpec(no_params, defocus_blur),
    "glass_blur": CorruptionSpec(glass_params, glass_blur),
    "motion_blur": CorruptionSpec(angle_params(-45, 45), motion_blur),
    "zoom_blur": CorruptionSpec(no_params, zoom_blur),
    "snow": CorruptionSpec(snow_params, snow),
    "frost": CorruptionSpec(frost_params, frost),
    "fog": CorruptionSpec(fog_params, fog),
    "brightness": CorruptionSpec(no_params, brightness),
    "contrast": CorruptionSpec(no_params, contrast),
    "elastic_transform": CorruptionSpec(elastic_params, elastic_transform),
    "pixelate": CorruptionSpec(no_params, pixelate),
    "jpeg_compression": CorruptionSpec(no_params, jpeg_compression),
    "speckle_noise": CorruptionSpec(normal_params, speckle_noise),
    "gaussian_blur": CorruptionSpec(no_params, gaussian_blur),
    "spatter": CorruptionSpec(spatter_params, spatter),
    "saturate": CorruptionSpec(no_params, saturate),
}
