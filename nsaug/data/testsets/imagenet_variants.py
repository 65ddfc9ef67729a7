"""ImageNet-A, -R, -Sketch, -V2 and Stylized-ImageNet: ImageNet's classes under distribution shift."""

from importlib.resources import files
from typing import Any, ClassVar, Literal, get_args

from nsaug.data.dataset import Label
from nsaug.data.names import wnids
from nsaug.data.testsets.published import ClassFolders
from nsaug.utils.types import validate_args


def class_subset_indices(name: str) -> list[int]:
    """Class indices of a subset of ImageNet that timm lists: `imagenet_a` or `imagenet_r`."""
    text = (files("timm.data") / "_info" / f"{name}_synsets.txt").read_text()
    index = {wnid: label for label, wnid in enumerate(wnids())}
    return sorted(index[wnid] for wnid in text.split())


class _ClassSubset(ClassFolders):
    """Images of 200 of the classes; predictions are made among these."""

    subset_name: ClassVar[str]

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_subset: list[int] = class_subset_indices(self.subset_name)

    def label_index(self) -> dict[str, Label | None]:
        return {self.class_names[label]: label for label in self.class_subset}


class ImageNetA(_ClassSubset):
    """Natural adversarial examples: root/WNID/ (Hendrycks et al., arXiv 1907.07174)."""

    title = "ImageNet-A"
    folder = "imagenet-a"
    homepage = "https://github.com/hendrycks/natural-adv-examples"
    subset_name = "imagenet_a"
    images_expected = 7_500


class ImageNetR(_ClassSubset):
    """Renditions: root/WNID/ (Hendrycks et al., arXiv 2006.16241)."""

    title = "ImageNet-R"
    folder = "imagenet-r"
    homepage = "https://github.com/hendrycks/imagenet-r"
    subset_name = "imagenet_r"
    images_expected = 30_000


class ImageNetSketch(ClassFolders):
    """Sketches: root/WNID/, or root/sketch/WNID/ (Wang et al., arXiv 1905.13549)."""

    title = "ImageNet-Sketch"
    folder = "imagenet-sketch"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
    subdirs = ("", "sketch")
    images_expected = 50_889


class StylizedImageNet(ClassFolders):
    """Validation images in the style of paintings: root/val/WNID/ (Geirhos et al., arXiv 1811.12231)."""

    title = "Stylized-ImageNet"
    folder = "stylized-imagenet"
    homepage = "https://github.com/rgeirhos/Stylized-ImageNet"
    subdirs = ("val", "")
    images_expected = 50_000


Variant = Literal["matched-frequency", "threshold0.7", "top-images"]


class ImageNetV2(ClassFolders):
    """A second test set: root/0/ to root/999/, named by class index (Recht et al., arXiv 1902.10811).

    Args:
        variant: how the images were chosen. The class folders may also be in root/imagenetv2-VARIANT-format-val/.
        kwargs: see `PublishedDataset`.
    """

    folder = "imagenetv2"
    homepage = "https://imagenetv2.org"
    images_expected = 10_000

    @validate_args
    def __init__(self, *, variant: Variant = "matched-frequency", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.title = f"ImageNet-V2 ({variant})"
        self.subdirs = (f"imagenetv2-{variant}-format-val",)
        if not any(other in self.root.name for other in get_args(Variant) if other != variant):
            self.subdirs += ("",)  # root itself, unless its name says that it is another variant

    def label_index(self) -> dict[str, Label | None]:
        return {str(label): label for label in range(len(self.class_names))}
