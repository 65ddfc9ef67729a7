"""Images and labels, one file per kind of source, each a LightningDataModule with train, val and test splits."""

from nsaug.data.datamodule import ImageDataModule, InputConfig
from nsaug.data.dataset import ImageSet, MissingData, UnreadableImage
from nsaug.data.samplers import SeededDataset
from nsaug.data.sources.cifar10 import CIFAR10
from nsaug.data.sources.digits import Digits
from nsaug.data.sources.folder import Folder
from nsaug.data.sources.imagenet import ImageNet
from nsaug.data.testsets.imagenet_val import DAmageNet, ImageNetReaL
from nsaug.data.testsets.imagenet_variants import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, StylizedImageNet
from nsaug.data.testsets.objectnet import ObjectNet
from nsaug.data.testsets.stored_corruptions import CIFAR10C, ImageNetC

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
    "UnreadableImage",
]
