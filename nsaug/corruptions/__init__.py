"""Common corruptions on the fly: pure functions of images, severity and random parameters, on the images' device."""

from nsaug.corruptions.corruption import Corruption
from nsaug.corruptions.gaussian_noise import GaussianNoise
from nsaug.corruptions.severities import TEST_CORRUPTIONS

__all__ = ["TEST_CORRUPTIONS", "Corruption", "GaussianNoise"]
