"""Common corruptions on the fly: pure functions of images, strength and draws, in torch, on the images' device."""

from nsaug.corruptions.constants import TEST
from nsaug.corruptions.corruption import Corruption
from nsaug.corruptions.gaussian_noise import GaussianNoise

__all__ = ["TEST", "Corruption", "GaussianNoise"]
