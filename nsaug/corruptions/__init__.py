"""Common corruptions on the fly: pure functions of images, strength and draws, in torch, on the images' device."""

from nsaug.corruptions.gaussian_noise import GaussianNoise

__all__ = ["GaussianNoise"]
