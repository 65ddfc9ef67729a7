"""CIFAR-10.1 and CIFAR-10.2: new test images of CIFAR-10's classes."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from nsaug.data.arrays import ArrayLoader
from nsaug.data.dataset import ImageSet
from nsaug.data.names import CIFAR10_CLASSES
from nsaug.data.testsets.published import PublishedDataset
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import is_file
from nsaug.utils.types import validate_args

Arrays = tuple[Path, np.ndarray, np.ndarray]


def are_labels(labels: np.ndarray, count: int) -> bool:
    """Whether an array holds one class of CIFAR-10 for each of `count` images."""
    return labels.shape == (count,) and labels.dtype.kind in "iu" and bool(np.isin(labels, range(10)).all())


class _NewTestImages(PublishedDataset):
    """Images of CIFAR-10's classes in an array, 32 px. A subclass implements `read_arrays`."""

    stored_size = 32

    @validate_args
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = CIFAR10_CLASSES

    def read_arrays(self) -> Arrays:
        """Return the file of the images, the images and the labels."""
        raise NotImplementedError

    def list_images(self) -> ImageSet:
        path, images, labels = self.read_arrays()
        if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or not are_labels(labels, len(images)):
            raise UserError(
                f"{path} has images of shape {images.shape} and type {images.dtype}, and labels {labels.shape} and"
                f" {labels.dtype}: expected the published arrays, (N, 32, 32, 3) in uint8 and (N,), from 0 to 9"
            )
        ids = [f"{self.folder}/{index:04d}" for index in range(len(images))]
        return ImageSet(ids, [int(label) for label in labels], ArrayLoader(images))


class CIFAR10_1(_NewTestImages):
    """root/cifar10.1_VERSION_data.npy and root/cifar10.1_VERSION_labels.npy (Recht et al., arXiv 1806.00451).

    Args:
        version: v6, which the authors recommend, has as many images of every class; v4 is the first one.
        kwargs: see `PublishedDataset`.
    """

    folder = "cifar-10.1"
    homepage = "https://github.com/modestyachts/CIFAR-10.1"
    num_images: ClassVar[dict[str, int]] = {"v4": 2021, "v6": 2000}

    @validate_args
    def __init__(self, *, version: Literal["v6", "v4"] = "v6", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.title = f"CIFAR-10.1 ({version})"
        self.images_expected = self.num_images[version]

    def read_arrays(self) -> Arrays:
        data, labels = (self.root / f"cifar10.1_{self.version}_{part}.npy" for part in ("data", "labels"))
        return data, self.load_array(data), self.load_array(labels)


class CIFAR10_2(_NewTestImages):
    """root/cifar102_test.npz, or root/cifar102_test.npy of older releases.

    Source: Lu et al., Harder or Different? A Closer Look at Distribution Shift in Dataset Reproduction, ICML 2020
    Workshop on Uncertainty and Robustness in Deep Learning.
    """

    title = "CIFAR-10.2"
    folder = "cifar-10.2"
    homepage = "https://github.com/modestyachts/cifar-10.2"
    images_expected = 2000

    def read_arrays(self) -> Arrays:
        archive, pickled = self.root / "cifar102_test.npz", self.root / "cifar102_test.npy"
        path = archive if is_file(archive) else pickled
        if not is_file(path):
            raise self.missing(f"there is neither {archive} nor {pickled.name}")
        try:
            arrays = np.load(path) if path == archive else _unpickle_arrays(path)
            return path, np.asarray(arrays["images"]), np.asarray(arrays["labels"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise self.missing(f"{path} cannot be read ({first_line(error)})") from error


def _unpickle_arrays(path: Path) -> dict[str, Any]:
    """Read a dictionary of arrays that was saved by `numpy.save`, without executing code from the file."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        content = _ArrayUnpickler(file).load()
    if not isinstance(content, np.ndarray) or not isinstance(content.item(), dict):
        raise ValueError("it is not a dictionary of arrays")
    return content.item()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers only; a pickle can name any other function to call."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy's name before version 2
        if (module, name) not in {
            ("numpy", "ndarray"), ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
        }:  # fmt: skip
            raise pickle.UnpicklingError(f"it is a pickle that calls {module}.{name}")
        return super().find_class(module, name)
