"""Sets that ImageNet's 1,000 classes are judged on under a shift of distribution; there is nothing to train on."""

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import ToTensor, v2

from nsaug.data.datamodule import ImageDataModule, InputConfig
from nsaug.data.dataset import ImageSet, Label, MissingData
from nsaug.data.sources.folder import FileLoader, folder_names, labelled_files, relative_ids
from nsaug.data.sources.imagenet import wnids
from nsaug.utils.errors import UserError
from nsaug.utils.types import NonNegativeInt, PositiveInt, validate_args


class TestDataset(ImageDataModule):
    """What all of them share. A subclass says where its images are and how they are labelled.

    Args:
        root: the set's folder.
        batch_size, num_workers: as for `ImageDataModule`.
    """

    title: str
    homepage: ClassVar[str]
    """Where a user gets it."""
    stored_size: ClassVar[int | None] = None
    """Side of images that are stored as models are to see them, in pixels; None where timm resizes and crops."""

    @validate_args
    def __init__(self, *, root: str, batch_size: PositiveInt = 128, num_workers: NonNegativeInt | None = None) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.root = Path(root).expanduser()
        self.class_names = wnids()

    @property
    def notes(self) -> list[str]:
        return super().notes + ([self._resized] if self._resized else [])

    @property
    def _resized(self) -> str | None:
        if self.stored_size is None or self._input_config is None:
            return None
        size = "x".join(map(str, dict.fromkeys(self._input_config.size)))
        return None if size == str(self.stored_size) else f"resized from {self.stored_size} to {size} px"

    def read(self, split: Literal["train", "test"]) -> ImageSet:
        if split == "train":
            raise UserError(f"{self.title} has no training images: it is there to judge on; train on data=imagenet")
        if not self.root.is_dir():
            raise self.missing(f"there is no folder {self.root}")
        return self.find()

    def find(self) -> ImageSet:
        """The images below `root`, which is a folder.

        Raises:
            MissingData: there are none.
            UserError: the layout is another one.
        """
        raise NotImplementedError

    def missing(self, reason: str) -> MissingData:
        """The error of a set that is not there."""
        return MissingData(f"{self.title}: {reason}; it is published at {self.homepage}")

    def _set_transforms(self) -> None:
        super()._set_transforms()
        if self.stored_size is not None and self._input_config is not None and self.test_set is not None:
            self.test_set.transform = as_stored(self.stored_size, self._input_config)


def as_stored(size: int, input_config: InputConfig) -> Any:
    """Images of a side as they are; resized as a whole for a model that takes another size."""
    steps: list[Any] = [_Checked(size)]
    if input_config.size != (size, size):
        steps.append(v2.Resize(input_config.size, str_to_interp_mode(input_config.interpolation)))
    return v2.Compose([*steps, ToTensor()])


class _Checked:
    """Refuses an image of another size than that of the stored set: it was changed since it was published."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        if image.size != (self.size, self.size):
            raise UserError(
                f"images of this set are stored at {self.size} x {self.size} px, this copy holds one of"
                f" {image.size[0]} x {image.size[1]}: unpack the published archive again"
            )
        return image


class ClassFolders(TestDataset):
    """Images in class folders."""

    below: tuple[str, ...] = ("",)
    """Where the class folders may be, from the root on."""

    def index(self) -> dict[str, Label | None]:
        """The label of each folder, of a wnid its class index; None where a folder's images do not count."""
        return {name: label for label, name in enumerate(self.class_names)}

    def find(self) -> ImageSet:
        index = self.index()
        for part in self.below:
            folder = self.root / part
            if folder.is_dir() and not index.keys().isdisjoint(folder_names(folder)):
                paths, labels = labelled_files(folder, index)
                if paths:
                    return ImageSet(relative_ids(paths, self.root), labels, self.files(paths))
        places = " and ".join(str(self.root / part) for part in self.below)
        raise self.missing(f"no images in folders such as {next(iter(index))} in {places}")

    def files(self, paths: list[str]) -> FileLoader:
        return FileLoader(paths)


class _Subset(ClassFolders):
    """Of 200 of ImageNet's classes: answers are taken among these alone."""

    listed: ClassVar[str]

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_subset = class_subset_indices(self.listed)

    def index(self) -> dict[str, Label | None]:
        return {self.class_names[label]: label for label in self.class_subset or ()}


def class_subset_indices(name: str) -> list[int]:
    """Class indices of a subset of ImageNet that timm lists: `imagenet_a`, `imagenet_r`."""
    from importlib.resources import files

    text = (files("timm.data") / "_info" / f"{name}_synsets.txt").read_text()
    place = {wnid: index for index, wnid in enumerate(wnids())}
    return sorted(place[wnid] for wnid in text.split())


class ImageNetA(_Subset):
    """Natural adversarial examples: root/WNID/ (Hendrycks et al., arXiv 1907.07174)."""

    title = "ImageNet-A"
    homepage = "https://github.com/hendrycks/natural-adv-examples"
    listed = "imagenet_a"
    images_expected = 7_500


class ImageNetR(_Subset):
    """Renditions: root/WNID/ (Hendrycks et al., arXiv 2006.16241)."""

    title = "ImageNet-R"
    homepage = "https://github.com/hendrycks/imagenet-r"
    listed = "imagenet_r"
    images_expected = 30_000


class ImageNetSketch(ClassFolders):
    """Drawings: root/WNID/, or root/sketch/WNID/ (Wang et al., arXiv 1905.13549)."""

    title = "ImageNet-Sketch"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
    below = ("", "sketch")
    images_expected = 50_889


class StylizedImageNet(ClassFolders):
    """Validation images in the style of paintings: root/val/WNID/ (Geirhos et al., arXiv 1811.12231)."""

    title = "Stylized-ImageNet"
    homepage = "https://github.com/rgeirhos/Stylized-ImageNet"
    below = ("val", "")
    images_expected = 50_000


Variant = Literal["matched-frequency", "threshold0.7", "top-images"]


class ImageNetV2(ClassFolders):
    """A second test set: root/0/ to root/999/, folders named by class index (Recht et al., arXiv 1902.10811).

    Args:
        variant: how its images were chosen. Below root they may lie in imagenetv2-VARIANT-format-val/.
        kwargs: as for `TestDataset`.
    """

    homepage = "https://imagenetv2.org"
    images_expected = 10_000

    @validate_args
    def __init__(self, *, variant: Variant = "matched-frequency", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.title = f"ImageNet-V2 ({variant})"
        self.below = (f"imagenetv2-{variant}-format-val",)
        if not any(other in self.root.name for other in get_args(Variant) if other != variant):
            self.below += ("",)  # unless the folder's own name says that it holds another one

    def index(self) -> dict[str, Label | None]:
        return {str(label): label for label in range(len(self.class_names))}
