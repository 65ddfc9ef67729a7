"""Images and labels: data modules to train on, and test sets to evaluate on."""

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet, MissingData, UnreadableImage
from nsaug.data.samplers import SeededDataset
from nsaug.data.sources.cifar10 import CIFAR10
from nsaug.data.sources.digits import Digits
from nsaug.data.sources.folder import Folder
from nsaug.data.sources.imagenet import ImageNet
from nsaug.data.testsets.base import TestDataset
from nsaug.data.testsets.cifar10_c import CIFAR10C
from nsaug.data.testsets.damagenet import DAmageNet
from nsaug.data.testsets.imagenet_c import ImageNetC
from nsaug.data.testsets.imagenet_variants import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, StylizedImageNet
from nsaug.data.testsets.objectnet import ObjectNet
from nsaug.data.testsets.real import ImageNetReaL
from nsaug.data.transforms import InputConfig

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "DAmageNet",
    "Digits",
    "Folder",
    "ImageDataModule",
    "ImageNet",
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetReaL",
    "ImageNetSketch",
    "ImageNetV2",
    "ImageSet",
    "InputConfig",
    "MissingData",
    "ObjectNet",
    "SeededDataset",
    "StylizedImageNet",
    "TestDataset",
    "UnreadableImage",
]
