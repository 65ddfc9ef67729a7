"""The 19 common corruptions: for each what it draws for an image, and what it does to a batch.

From images (B, 3, H, W) in [0, 1], B dictionaries of draws and the constants of a severity to images of the same shape.
The definitions are those of Hendrycks and Dietterich (arXiv 1903.12261).
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

from nsaug.corruptions.filters import (
    bilinear,
    disk,
    filtered,
    gaussian,
    grey,
    motion_blurred,
    with_saturation,
    with_value,
    zoomed,
)
from nsaug.utils.optional_imports import optional_import

Size = tuple[int, int]
Params = dict[str, Tensor]
"""The random numbers of one image, by name, on the CPU."""


@dataclass(frozen=True)
class CorruptionSpec:
    """A corruption.

    Attributes:
        draw: the numbers that one image of a size (H, W) needs at these constants.
        apply: corrupts a batch, given each image's numbers.
    """

    draw: Callable[[Any, Size, torch.Generator], Params]
    apply: Callable[[Tensor, list[Params], Any], Tensor]


def stacked(draws: list[Params], name: str, like: Tensor) -> Tensor:
    return torch.stack([each[name] for each in draws]).to(like)


def no_draws(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {}


def normal_values(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"normal": torch.randn(3, *size, generator=generator)}


def gaussian_noise(images: Tensor, draws: list[Params], std: float) -> Tensor:
    return images + std * stacked(draws, "normal", images)


def speckle_noise(images: Tensor, draws: list[Params], std: float) -> Tensor:
    return images + images * std * stacked(draws, "normal", images)


def uniform_values(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"uniform": torch.rand(3, *size, generator=generator)}


def shot_noise(images: Tensor, draws: list[Params], photons: float) -> Tensor:
    """Poisson counts, by their inverse distribution function at each of the 256 levels that a value can have."""
    level = (images * 255).round().long()
    uniform = torch.stack([each["uniform"] for each in draws]).to(images.device).double()
    table = _poisson(photons).to(images.device)
    place = torch.searchsorted(table.flatten(), uniform + 2 * level, right=True)
    return (place - level * table.shape[1]).to(images.dtype) / photons


@functools.cache
def _poisson(photons: float) -> Tensor:
    """P(count <= k) at level l / 255, plus 2 l: one ascending row after another."""
    rate = torch.arange(256, dtype=torch.float64) / 255 * photons
    most = int(photons + 12 * math.sqrt(photons) + 12)
    counts = torch.arange(most, dtype=torch.float64)
    log = torch.xlogy(counts, rate[:, None]) - rate[:, None] - torch.lgamma(counts + 1)
    return log.exp().cumsum(1).clamp(max=1) + 2 * torch.arange(256)[:, None]


def two_uniforms(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {name: torch.rand(3, *size, generator=generator) for name in ("hit", "salt")}


def impulse_noise(images: Tensor, draws: list[Params], share: float) -> Tensor:
    hit = torch.stack([each["hit"] for each in draws]).to(images.device) <= share
    salt = torch.stack([each["salt"] for each in draws]).to(images.device) <= 0.5
    return torch.where(hit, salt.to(images), images)


def gaussian_blur(images: Tensor, draws: list[Params], sigma: float) -> Tensor:
    return gaussian(images, sigma)


def defocus_blur(images: Tensor, draws: list[Params], constants: tuple[float, float]) -> Tensor:
    return filtered(images, disk(*constants))


def moves(constants: tuple[float, int, int], size: Size, generator: torch.Generator) -> Params:
    _, reach, rounds = constants
    shape = (rounds, max(0, size[0] - 2 * reach), max(0, size[1] - 2 * reach), 2)
    return {"moves": torch.randint(-reach, reach, shape, generator=generator, dtype=torch.int8)}


def glass_blur(images: Tensor, draws: list[Params], constants: tuple[float, int, int]) -> Tensor:
    sigma, reach, _ = constants
    blurred = (gaussian(images, sigma) * 255).floor().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    scatter = _scatter()
    for pixels, own in zip(blurred, draws, strict=True):
        scatter(pixels, own["moves"].numpy(), reach)
    moved = torch.from_numpy(blurred).to(images.device).permute(0, 3, 1, 2).to(images.dtype) / 255
    return gaussian(moved, sigma)


@functools.cache
def _scatter() -> Any:
    """A loop over pixels, from the last to the first, each taking the colour of one nearby as it then is."""
    numba = optional_import("corruptions", "numba")

    @numba.njit(cache=False)
    def scatter(pixels: Any, moves: Any, reach: int) -> None:
        height, width = pixels.shape[:2]
        for turn in range(moves.shape[0]):
            for down in range(moves.shape[1]):
                for across in range(moves.shape[2]):
                    h, w = height - reach - down, width - reach - across
                    dx, dy = moves[turn, down, across]
                    for channel in range(3):
                        pixels[h, w, channel] = pixels[h + dy, w + dx, channel]

    return scatter


def angle_between(low: float, high: float) -> Callable[[Any, Size, torch.Generator], Params]:
    def draw(constants: Any, size: Size, generator: torch.Generator) -> Params:
        return {"angle": low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)}

    return draw


def motion_blur(images: Tensor, draws: list[Params], constants: tuple[int, float]) -> Tensor:
    moved = [
        motion_blurred(image, *constants, angle=float(own["angle"])) for image, own in zip(images, draws, strict=True)
    ]
    return torch.stack(moved)


def zoom_blur(images: Tensor, draws: list[Params], constants: tuple[float, float]) -> Tensor:
    factors = np.arange(1, *constants)
    size = (images.shape[-2], images.shape[-1])
    total = images.clone()
    for factor in factors:
        total += zoomed(images, float(factor), size)
    return total / (len(factors) + 1)


def flakes(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {
        "normal": torch.randn(1, *size, generator=generator),
        **angle_between(-135, -45)(constants, size, generator),
    }


def snow(images: Tensor, draws: list[Params], constants: tuple[float, ...]) -> Tensor:
    mean, spread, zoom, threshold, radius, sigma, share = constants
    layer = zoomed(mean + spread * stacked(draws, "normal", images), zoom)
    layer = torch.where(layer < threshold, 0, layer).clamp(0, 1)
    layer = motion_blur(layer, draws, (int(radius), sigma))
    layer = ((layer * 255).round() / 255)[..., : images.shape[-2], : images.shape[-1]]
    whiter = torch.maximum(images, grey(images) * 1.5 + 0.5)
    return share * images + (1 - share) * whiter + layer + layer.rot90(2, (-2, -1))


FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")


def place_in_frost(constants: Any, size: Size, generator: torch.Generator) -> Params:
    number = torch.randint(len(FROST), (), generator=generator)
    height, width = _frost(int(number), size).shape[:2]
    top = torch.randint(0, height - size[0], (), generator=generator)
    left = torch.randint(0, width - size[1], (), generator=generator)
    return {"number": number, "top": top, "left": left}


def frost(images: Tensor, draws: list[Params], constants: tuple[float, float]) -> Tensor:
    height, width = images.shape[-2:]
    layers = []
    for own in draws:
        whole, top, left = _frost(int(own["number"]), (height, width)), int(own["top"]), int(own["left"])
        layers.append(torch.from_numpy(whole[top : top + height, left : left + width].copy()))
    layer = torch.stack(layers).permute(0, 3, 1, 2).to(images) / 255
    return constants[0] * images + constants[1] * layer


@functools.cache
def _frost(number: int, size: Size) -> np.ndarray:
    """A picture of frost, (h, w, 3) in uint8: a fifth of its size for small images, for others a tenth larger."""
    cv2 = optional_import("corruptions", "cv2")
    optional_import("corruptions", "imagecorruptions")
    file = importlib.resources.files("imagecorruptions") / "frost" / FROST[number]
    whole = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    factor = 0.2 if max(size) <= 32 else 1.1 * max(1.0, size[0] / whole.shape[0], size[1] / whole.shape[1])
    shape = (math.ceil(whole.shape[1] * factor), math.ceil(whole.shape[0] * factor))
    return cv2.resize(np.ascontiguousarray(whole), dsize=shape, interpolation=cv2.INTER_CUBIC)


def plasma(constants: Any, size: Size, generator: torch.Generator) -> Params:
    side = 1 << (max(size) - 1).bit_length()
    return {"plasma": 2 * torch.rand(side * side - 1, generator=generator) - 1}


def fog(images: Tensor, draws: list[Params], constants: tuple[float, float]) -> Tensor:
    density, decay = constants
    height, width = images.shape[-2:]
    brightest = images.amax((1, 2, 3), keepdim=True)
    clouds = _plasma(stacked(draws, "plasma", images), decay)[:, None, :height, :width]
    return (images + density * clouds) * brightest / (brightest + density)


def _plasma(draws: Tensor, decay: float) -> Tensor:
    """Clouds (B, n, n) in [0, 1] by the diamond-square algorithm on a torus, from n² - 1 numbers each in [-1, 1)."""
    side = math.isqrt(draws.shape[1] + 1)
    field = draws.new_zeros(len(draws), side, side)
    step, rough, used = side, 100.0, 0

    def middle(total: Tensor) -> Tensor:
        nonlocal used
        count = total[0].numel()
        moved = total / 4 + rough * rough * draws[:, used : used + count].view_as(total)
        used += count
        return moved

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = middle(squares + squares.roll(-1, 2))
        centres, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        vertical = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = middle(vertical)
        horizontal = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = middle(horizontal)
        step, rough = half, rough / decay
    field = field - field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def brightness(images: Tensor, draws: list[Params], more: float) -> Tensor:
    return with_value(images, (images.amax(-3, keepdim=True) + more).clamp(0, 1))


def saturate(images: Tensor, draws: list[Params], constants: tuple[float, float]) -> Tensor:
    return with_saturation(images, *constants)


def contrast(images: Tensor, draws: list[Params], share: float) -> Tensor:
    mean = images.double().mean((-2, -1), keepdim=True).to(images.dtype)
    return (images - mean) * share + mean


def displacements(constants: tuple[float, ...], size: Size, generator: torch.Generator) -> Params:
    draws = {"field": 2 * torch.rand(2, *size, generator=generator, dtype=torch.float64) - 1}
    if max(size) <= 32:
        draws["corners"] = 2 * torch.rand(3, 2, generator=generator, dtype=torch.float64) - 1
    return draws


def elastic_transform(images: Tensor, draws: list[Params], constants: tuple[float, float, float]) -> Tensor:
    """Pixels taken from nearby, by a smooth random field; of small images after an affine map by random corners."""
    strength, smoothness, reach = constants
    height, width = images.shape[-2:]
    small = max(height, width) <= 32
    if small:
        images = _affine(images, stacked(draws, "corners", images.double()) * reach * height)
        strength, reach = strength * height, 1.0
    else:
        reach = reach * height
    field = stacked(draws, "field", images.double()) * reach
    sigma = smoothness * height
    smooth = gaussian(field, sigma, truncate=3.0, edge="symmetric") * strength
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return bilinear(images, x.to(smooth) + smooth[:, 0], y.to(smooth) + smooth[:, 1], "symmetric")


def _affine(images: Tensor, moved: Tensor) -> Tensor:
    """The images mapped so that three corners of a square in their middle move by (B, 3, 2) pixels."""
    height, width = images.shape[-2:]
    third = min(height, width) // 3
    middle = torch.tensor([height // 2, width // 2], dtype=torch.float64, device=images.device)
    signs = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64, device=images.device)
    source = middle + third * signs
    one = torch.ones(len(images), 3, 1, dtype=torch.float64, device=images.device)
    # From each pixel of the result to where it comes from.
    back = torch.linalg.solve(torch.cat([source + moved, one], -1), source.expand_as(moved))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).to(back).view(1, -1, 3) @ back
    x, y = pixels.unflatten(1, (height, width)).unbind(-1)
    return bilinear(images, x, y, "reflect")


def pixelate(images: Tensor, draws: list[Params], share: float) -> Tensor:
    """Pillow's box filter down and nearest pixels up, as products with its matrices."""
    height, width = images.shape[-2:]
    down, left = (_box(side, int(side * share)).to(images) for side in (height, width))
    # Pillow goes through 8 bits between the two, and rounds halves up.
    coarse = (images @ left.T * 255 + 0.5 + 1e-3).floor() / 255
    coarse = (down @ coarse * 255 + 0.5 + 1e-3).floor() / 255
    rows, columns = (
        ((torch.arange(side) + 0.5) * int(side * share) / side).long().to(images.device) for side in (height, width)
    )
    return coarse[..., rows, :][..., columns]


@functools.cache
def _box(side: int, coarse: int) -> Tensor:
    """(coarse, side): each row the mean of the pixels whose centres lie in its box."""
    scale = side / coarse
    centre = (torch.arange(coarse, dtype=torch.float64)[:, None] + 0.5) * scale
    place = (torch.arange(side, dtype=torch.float64)[None] + 0.5 - centre) / scale
    inside = ((place > -0.5) & (place <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def jpeg_compression(images: Tensor, draws: list[Params], quality: int) -> Tensor:
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    found = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "JPEG", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(found).permute(0, 3, 1, 2).to(images) / 255


def drops(constants: Any, size: Size, generator: torch.Generator) -> Params:
    return {"normal": torch.randn(1, *size, generator=generator, dtype=torch.float64)}


def spatter(images: Tensor, draws: list[Params], constants: tuple[float, ...]) -> Tensor:
    mean, spread, sigma, threshold, strength, mud = constants
    layer = gaussian(mean + spread * stacked(draws, "normal", images.double()), sigma)
    layer = torch.where(layer < threshold, 0, layer)
    if mud:
        mask = gaussian((layer > threshold).to(images), strength)
        mask = torch.where(mask < 0.8, 0, mask)
        brown = torch.tensor([63, 42, 20], device=images.device, dtype=images.dtype).view(3, 1, 1) / 255
        return images * (1 - mask) + brown * mask
    wet = torch.stack([torch.from_numpy(_wetness(each)) for each in (layer[:, 0] * 255).byte().cpu().numpy()])
    turquoise = torch.tensor([175, 238, 238], device=images.device, dtype=images.dtype).view(3, 1, 1) / 255
    return images + (strength * wet[:, None].to(images) * turquoise).clamp(0, 1)


def _wetness(layer: np.ndarray) -> np.ndarray:
    """How much water shows at each pixel, in [0, 1]: drops (H, W) in uint8, lit at their edges."""
    cv2 = optional_import("corruptions", "cv2")
    distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = cv2.blur(cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, light), (3, 3))
    wet = layer * lit.astype(np.float32)
    return wet / max(float(wet.max()), 1e-12)


KINDS = {
    "gaussian_noise": CorruptionSpec(normal_values, gaussian_noise),
    "shot_noise": CorruptionSpec(uniform_values, shot_noise),
    "impulse_noise": CorruptionSpec(two_uniforms, impulse_noise),
    "defocus_blur": CorruptionSpec(no_draws, defocus_blur),
    "glass_blur": CorruptionSpec(moves, glass_blur),
    "motion_blur": CorruptionSpec(angle_between(-45, 45), motion_blur),
    "zoom_blur": CorruptionSpec(no_draws, zoom_blur),
    "snow": CorruptionSpec(flakes, snow),
    "frost": CorruptionSpec(place_in_frost, frost),
    "fog": CorruptionSpec(plasma, fog),
    "brightness": CorruptionSpec(no_draws, brightness),
    "contrast": CorruptionSpec(no_draws, contrast),
    "elastic_transform": CorruptionSpec(displacements, elastic_transform),
    "pixelate": CorruptionSpec(no_draws, pixelate),
    "jpeg_compression": CorruptionSpec(no_draws, jpeg_compression),
    "speckle_noise": CorruptionSpec(normal_values, speckle_noise),
    "gaussian_blur": CorruptionSpec(no_draws, gaussian_blur),
    "spatter": CorruptionSpec(drops, spatter),
    "saturate": CorruptionSpec(no_draws, saturate),
}
