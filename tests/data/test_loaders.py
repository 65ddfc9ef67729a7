"""All loaders work in threads, in forked worker processes, and, since they can be pickled, in spawned ones."""

import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from nsaug.data.arrays import ArrayFileLoader, ArrayLoader
from nsaug.data.files import FileLoader, find_images
from nsaug.data.sources.tar import TarLoader

COUNT = 40


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


def files(pixels, tmp_path):
    for number, image in enumerate(pixels):
        path = tmp_path / "data" / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return FileLoader(sorted(find_images(tmp_path / "data"), key=lambda path: path[-6:]))


def class_folders_in_tar(pixels, tmp_path):
    paths = files(pixels, tmp_path).paths
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for path in paths:
            tar.add(path, path[-13:])
    return TarLoader.open(tmp_path / "data.tar")


def tars_in_tar(pixels, tmp_path):
    """The members of the inner tars have the same offsets."""
    paths = files(pixels, tmp_path).paths
    for name in ("class0", "class1"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for path in paths:
                if name in path:
                    tar.add(path, path[-6:])
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name in ("class0", "class1"):
            tar.add(tmp_path / f"{name}.tar", f"{name}.tar")
    return TarLoader.open(tmp_path / "data.tar")


def array_file(pixels, tmp_path):
    np.save(tmp_path / "images.npy", np.concatenate([255 - pixels, pixels]))
    return ArrayFileLoader(str(tmp_path / "images.npy"), start=COUNT)


def array(pixels, tmp_path):
    return ArrayLoader(pixels)


@pytest.fixture(params=[files, class_folders_in_tar, tars_in_tar, array_file, array])
def load(request, pixels, tmp_path):
    return request.param(pixels, tmp_path)


def order(load):
    """Positions of the images in the loader: timm sorts tars by the path in the archive."""
    if not isinstance(load, TarLoader):
        return range(COUNT)
    numbers = [int(name[-6:-4]) for name in load.names]
    return [numbers.index(number) for number in range(COUNT)]


def test_threads_get_the_right_images(load, pixels):
    positions = 20 * list(order(load))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(load, positions))
        hashes = list(pool.map(load.fingerprint, positions))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(np.array(image), pixels[index % COUNT])
    assert len(set(hashes)) == COUNT
    assert hashes == 20 * hashes[:COUNT]


def test_pickled_loaders_are_the_same(load, pixels):
    hashes = [load.fingerprint(index) for index in range(COUNT)]
    load(0)
    pickled = pickle.dumps(load)
    copy = pickle.loads(pickled)
    assert [copy.fingerprint(index) for index in range(COUNT)] == hashes
    for index, position in enumerate(order(copy)):
        np.testing.assert_array_equal(np.array(copy(position)), pixels[index])
    if isinstance(load, ArrayFileLoader):
        assert len(pickled) < 1000, "without the array"


@pytest.mark.parametrize("layout", [files, class_folders_in_tar, tars_in_tar])
def test_stamps_tell_images_apart(layout, pixels, tmp_path):
    load = layout(pixels, tmp_path)
    assert len({load.stamp(index) for index in range(COUNT)}) == COUNT
