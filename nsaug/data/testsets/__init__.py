"""Test sets: images to evaluate on."""

from nsaug.data.testsets.cifar10_c import CIFAR10C
from nsaug.data.testsets.cifar10_variants import CIFAR10_1, CIFAR10_2
from nsaug.data.testsets.cue_conflict import CueConflict
from nsaug.data.testsets.damagenet import DAmageNet
from nsaug.data.testsets.imagenet_c import ImageNet3DCC, ImageNetC, ImageNetCBar
from nsaug.data.testsets.imagenet_variants import ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2, StylizedImageNet
from nsaug.data.testsets.objectnet import ObjectNet
from nsaug.data.testsets.published import PublishedDataset
from nsaug.data.testsets.real import ImageNetReaL

TEST_SETS: dict[str, type[PublishedDataset]] = {
    "real": ImageNetReaL,
    "imagenet_v2": ImageNetV2,
    "imagenet_a": ImageNetA,
    "imagenet_r": ImageNetR,
    "imagenet_sketch": ImageNetSketch,
    "stylized_imagenet": StylizedImageNet,
    "damagenet": DAmageNet,
    "objectnet": ObjectNet,
    "imagenet_c": ImageNetC,
    "imagenet_3dcc": ImageNet3DCC,
    "imagenet_c_bar": ImageNetCBar,
    "cifar10_c": CIFAR10C,
    "cifar10_1": CIFAR10_1,
    "cifar10_2": CIFAR10_2,
    "cue_conflict": CueConflict,
}
"""All published test sets by name."""
