"""The corruptions of ImageNet-C and CIFAR-10-C for one image, in float64, written from their definitions.

Sources: make_imagenet_c.py and make_cifar_c.py of hendrycks/robustness (arXiv 1903.12261). An oracle for tests: it
shares no code and no constants with nsaug and does not use imagecorruptions, except for its pictures of frost. The
random numbers are those of nsaug.
"""

import importlib.resources
import io

import cv2
import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

# Constants of severities 1 to 5 for images of 224 and 32 px; lengths in pixels.
CONSTANTS = {
    "gaussian_noise": {224: [0.08, 0.12, 0.18, 0.26, 0.38], 32: [0.04, 0.06, 0.08, 0.09, 0.10]},
    "shot_noise": {224: [60, 25, 12, 5, 3], 32: [500, 250, 100, 75, 50]},
    "impulse_noise": {224: [0.03, 0.06, 0.09, 0.17, 0.27], 32: [0.01, 0.02, 0.03, 0.05, 0.07]},
    "speckle_noise": {224: [0.15, 0.2, 0.35, 0.45, 0.6], 32: [0.06, 0.1, 0.12, 0.16, 0.2]},
    "gaussian_blur": {224: [1, 2, 3, 4, 6], 32: [0.4, 0.6, 0.7, 0.8, 1]},
    "glass_blur": {
        224: [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        32: [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    },
    "defocus_blur": {
        224: [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        32: [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    },
    "motion_blur": {
        224: [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        32: [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    },
    "zoom_blur": {
        224: [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        32: [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    },
    "snow": {
        224: [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        32: [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    },
    "frost": {
        224: [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        32: [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    },
    "fog": {
        224: [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        32: [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    },
    "brightness": {224: [0.1, 0.2, 0.3, 0.4, 0.5], 32: [0.05, 0.1, 0.15, 0.2, 0.3]},
    "contrast": {224: [0.4, 0.3, 0.2, 0.1, 0.05], 32: [0.75, 0.5, 0.4, 0.3, 0.15]},
    "saturate": {
        224: [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
        32: [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    },
    "elastic_transform": {
        224: [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
        32: [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
    },
    "pixelate": {224: [0.6, 0.5, 0.4, 0.3, 0.25], 32: [0.95, 0.9, 0.85, 0.75, 0.65]},
    "jpeg_compression": {224: [25, 18, 15, 10, 7], 32: [80, 65, 58, 50, 40]},
    "spatter": {
        224: [
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ],
        32: [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
    },
}


def corrupt(name, pixels, severity, draws):
    """Corrupt one image, (224, 224, 3) or (32, 32, 3) in uint8, given its random numbers as numpy arrays."""
    corrupted = globals()[f"_{name}"](pixels / 255, CONSTANTS[name][len(pixels)][severity - 1], **draws)
    return _truncate(np.clip(corrupted, 0, 1))


def _truncate(image):
    """Cut off to 8 bits. The offset keeps whole levels that float64 misses by a rounding error."""
    return np.uint8(image * 255 + 1e-6)


def _gaussian_noise(image, std, normal):
    return image + std * normal.transpose(1, 2, 0)


def _speckle_noise(image, std, normal):
    return image * (1 + std * normal.transpose(1, 2, 0))


def _shot_noise(image, photons, uniform):
    uniform = uniform.transpose(1, 2, 0)
    noisy = np.empty_like(image)
    for level in np.unique(image):
        probabilities = stats.poisson.cdf(np.arange(photons * 4 + 30), level * photons)
        here = image == level
        noisy[here] = np.searchsorted(probabilities, uniform[here]) / photons
    return noisy


def _impulse_noise(image, fraction, hit, salt):
    hit, salt = hit.transpose(1, 2, 0) <= fraction, salt.transpose(1, 2, 0) <= 0.5
    return np.where(hit, salt, image)


def _gaussian_blur(image, sigma):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _glass_blur(image, constants, shifts):
    sigma, max_shift, iterations = constants
    side = len(image)
    sources = np.arange(side * side).tolist()
    shifts = iter((shifts @ np.array([1, side])).flatten().tolist())  # dx, dy
    for _ in range(iterations):
        for row in range(side - max_shift, max_shift, -1):
            for index in range(row * side + side - max_shift, row * side + max_shift, -1):
                sources[index] = sources[index + next(shifts)]
    assert next(shifts, None) is None
    blurred = _truncate(_gaussian_blur(image, sigma))
    return _gaussian_blur(blurred.reshape(-1, 3)[sources].reshape(image.shape) / 255, sigma)


def _defocus_blur(image, constants):
    radius, sigma = constants
    half, width = (8, 3) if radius <= 8 else (radius, 5)
    x, y = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)  # as in the scripts
    kernel = cv2.GaussianBlur(disk / disk.sum(), (width, width), sigma)
    return cv2.filter2D(image, -1, kernel)


def _motion_blur(image, constants, angle):
    """ImageMagick's MotionBlurImage: weights along a line from the pixel, as one kernel."""
    radius, sigma = constants
    steps = np.arange(2 * radius + 1)
    weights = stats.norm.pdf(steps, scale=sigma)
    x, y = (np.ceil(steps * function(np.deg2rad(angle)) - 0.5).astype(int) for function in (np.cos, np.sin))
    kernel = np.zeros((4 * radius + 3, 4 * radius + 3))
    np.add.at(kernel, (2 * radius + 1 + y, 2 * radius + 1 + x), weights / weights.sum())
    return _truncate(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)) / 255


def _zoom(image, factor):
    side = len(image)
    inner = int(np.ceil(side / factor))
    start = (side - inner) // 2
    part = image[start : start + inner, start : start + inner]
    large = ndimage.zoom(part, (factor, factor) + (1,) * (image.ndim - 2), order=1)
    trim = (len(large) - side) // 2
    return large[trim : trim + side, trim : trim + side]


def _zoom_blur(image, constants):
    # Rounding errors of arange decide how many factors there are, and the size of some zooms.
    return np.mean([image] + [_zoom(image, factor) for factor in np.arange(1, *constants)], 0)


def _snow(image, constants, normal, angle):
    mean, std, zoom, threshold, radius, sigma, image_weight = constants
    flakes = _zoom(mean + std * normal[0], zoom)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
    flakes = _motion_blur(_truncate(flakes) / 255, (radius, sigma), angle)[..., None]
    gray = image @ [[0.299], [0.587], [0.114]]
    white = np.maximum(image, 1.5 * gray + 0.5)
    return image_weight * image + (1 - image_weight) * white + flakes + flakes[::-1, ::-1]


def _frost(image, constants, index, top, left):
    image_weight, frost_weight = constants
    file = ["frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"][int(index)]
    picture = cv2.imread(str(importlib.resources.files("imagecorruptions") / "frost" / file))[..., ::-1]
    side = len(image)
    if side == 32:
        picture = cv2.resize(picture, (0, 0), fx=0.2, fy=0.2)
    assert 0 <= top < picture.shape[0] - side
    assert 0 <= left < picture.shape[1] - side
    crop = picture[top : top + side, left : left + side]
    return image_weight * image + frost_weight * crop / 255


def _fog(image, constants, plasma):
    density, decay = constants
    brightest = image.max()
    clouds = _diamond_square(256 if len(image) == 224 else 32, decay, plasma.tolist())
    foggy = image + density * clouds[: len(image), : len(image), None]
    return foggy * brightest / (brightest + density)


def _diamond_square(side, decay, noise):
    """Diamond-square algorithm on a torus, point by point."""
    heights = {(0, 0): 0.0}
    noise = iter(noise)
    step, amplitude = side, 100.0**2
    while step > 1:
        half, grid = step // 2, range(0, side, step)
        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for (down, right), neighbors in [((half, half), diagonal), ((0, half), straight), ((half, 0), straight)]:
            for row in grid:
                for column in grid:
                    y, x = row + down, column + right
                    total = sum(heights[(y + dy) % side, (x + dx) % side] for dy, dx in neighbors)
                    heights[y, x] = total / 4 + amplitude * next(noise)
        step, amplitude = half, amplitude / decay**2
    assert next(noise, None) is None
    field = np.array([[heights[y, x] for x in range(side)] for y in range(side)])
    return (field - field.min()) / (field.max() - field.min())


def _brightness(image, offset):
    hue, saturation, value = np.moveaxis(rgb_to_hsv(image), -1, 0)
    return hsv_to_rgb(np.stack([hue, saturation, np.clip(value + offset, 0, 1)], -1))


def _saturate(image, constants):
    factor, offset = constants
    hue, saturation, value = np.moveaxis(rgb_to_hsv(image), -1, 0)
    return hsv_to_rgb(np.stack([hue, np.clip(factor * saturation + offset, 0, 1), value], -1))


def _contrast(image, factor):
    mean = image.mean((0, 1))
    return mean + factor * (image - mean)


def _elastic_transform(image, constants, field, corners):
    alpha, sigma, max_shift = constants
    side = len(image)
    middle, third = side // 2, side // 3
    start = np.float32([(middle + third, middle + third), (middle + third, middle - third), (middle - third,) * 2])
    forward = cv2.getAffineTransform(start, np.float32(start + max_shift * corners))
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    y, x = np.mgrid[:side, :side].astype(float)
    source_x, source_y, _ = np.tensordot(inverse, np.stack([x, y, np.ones_like(x)]), 1)
    image = _sample(image, source_y, source_x, "mirror")
    dx, dy = (alpha * ndimage.gaussian_filter(own, sigma, mode="reflect", truncate=3) for own in field)
    return _sample(image, y + dy, x + dx, "reflect")


def _sample(image, y, x, mode):
    channels = [ndimage.map_coordinates(channel, [y, x], order=1, mode=mode) for channel in np.moveaxis(image, -1, 0)]
    return np.stack(channels, -1)


def _to_pixels(image):
    return np.round(255 * image).astype(np.uint8)


def _pixelate(image, fraction):
    picture = Image.fromarray(_to_pixels(image))
    small = picture.resize((int(len(image) * fraction),) * 2, Image.BOX)
    return np.array(small.resize(picture.size, Image.BOX)) / 255


def _jpeg_compression(image, quality):
    file = io.BytesIO()
    Image.fromarray(_to_pixels(image)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)) / 255


def _spatter(image, constants, normal):
    mean, std, sigma, threshold, strength, is_mud = constants
    layer = ndimage.gaussian_filter(mean + std * normal[0], sigma, mode="nearest")
    layer[layer < threshold] = 0
    if is_mud:
        opacity = ndimage.gaussian_filter((layer > threshold).astype(float), strength, mode="nearest")[..., None]
        opacity[opacity < 0.8] = 0
        return (1 - opacity) * image + opacity * np.array([63, 42, 20]) / 255
    layer = _truncate(layer)
    distance = np.minimum(cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5), 20)
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    edges = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    water = layer * cv2.blur(edges, (3, 3)).astype(float)
    return image + strength * (water / water.max())[..., None] * np.array([175, 238, 238]) / 255
