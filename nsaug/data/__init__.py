"""Images and labels: data modules to train on, and test sets to evaluate on."""

from nsaug.data.datamodule import ImageDataModule
from nsaug.data.dataset import ImageSet, MissingData, UnreadableImage
from nsaug.data.samplers import SeededDataset
from nsaug.data.sources.cifar10 import CIFAR10
from nsaug.data.sources.digits import Digits
from nsaug.data.sources.folder import Folder
from nsaug.data.sources.imagenet import ImageNet
from nsaug.data.testsets import (
    CIFAR10_1,
    CIFAR10_2,
    CIFAR10C,
    CueConflict,
    DAmageNet,
    ImageNet3DCC,
    ImageNetA,
    ImageNetC,
    ImageNetCBar,
    ImageNetR,
    ImageNetReaL,
    ImageNetSketch,
    ImageNetV2,
    ObjectNet,
    StylizedImageNet,
)
from nsaug.data.testsets.base import TestDataset
from nsaug.data.transforms import InputConfig

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR10_1",
    "CIFAR10_2",
    "CueConflict",
    "DAmageNet",
    "Digits",
    "Folder",
    "ImageDataModule",
    "ImageNet",
    "ImageNet3DCC",
    "ImageNetA",
    "ImageNetC",
    "ImageNetCBar",
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
