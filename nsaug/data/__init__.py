"""Images and labels, one file per kind of source, each a LightningDataModule with train, val and test splits."""

from nsaug.data.cifar10 import CIFAR10
from nsaug.data.digits import Digits
from nsaug.data.folder import Folder
from nsaug.data.imagenet import ImageNet
from nsaug.data.images import ImageData, ImageSet, Preparation

__all__ = ["CIFAR10", "Digits", "Folder", "ImageData", "ImageNet", "ImageSet", "Preparation"]
