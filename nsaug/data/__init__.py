"""Images and labels, one file per kind of source, each a LightningDataModule with train, val and test splits."""

from nsaug.data.cifar10 import CIFAR10
from nsaug.data.digits import Digits
from nsaug.data.folder import Folder
from nsaug.data.imagenet import ImageNet
from nsaug.data.imagenet_val import DAmageNet, ImageNetReaL
from nsaug.data.images import ImageData, Preparation
from nsaug.data.loading import Augmented
from nsaug.data.objectnet import ObjectNet
from nsaug.data.sets import ImageSet, MissingData, UnreadableImage
from nsaug.data.shift import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, StylizedImageNet
from nsaug.data.stored_corruptions import CIFAR10C, ImageNetC

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "Augmented",
    "DAmageNet",
    "Digits",
    "Folder",
    "ImageData",
    "ImageNet",
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetReaL",
    "ImageNetSketch",
    "ImageNetV2",
    "ImageSet",
    "MissingData",
    "ObjectNet",
    "Preparation",
    "StylizedImageNet",
    "UnreadableImage",
]
