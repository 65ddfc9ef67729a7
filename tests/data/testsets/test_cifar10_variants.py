import os
import pickle

import numpy as np
import pytest
import torch

from nsaug.data import CIFAR10_1, CIFAR10_2, MissingData
from nsaug.utils.errors import UserError
from tests.data.helpers import config, open_test


@pytest.fixture
def arrays():
    """30 images and their labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 30)


def save_cifar10_1(root, images, labels, version="v6"):
    np.save(root / f"cifar10.1_{version}_data.npy", images)
    np.save(root / f"cifar10.1_{version}_labels.npy", labels.astype(np.int32))


def save_npz(root, images, labels):
    """As published: the other arrays are of Python objects, which only pickle reads."""
    names = np.array([["airplane"], None], dtype=object)
    np.savez(root / "cifar102_test.npz", images=images, labels=labels, label_names=names)


def save_npy(root, images, labels):
    content = {"images": images, "labels": labels, "label_names": ["airplane"], "ti_indices": labels, "keywords": ["x"]}
    np.save(root / "cifar102_test.npy", content)


def check(data, images, labels):
    assert data.images.labels == labels.tolist()
    assert data.class_names[:3] == ["airplane", "automobile", "bird"]
    assert len(set(data.images.fingerprints())) == len(images)
    for index in (0, 7, 29):
        torch.testing.assert_close(data.images[index][0], torch.tensor(images[index]).permute(2, 0, 1) / 255)
    data.configure(config(224))
    assert data.images[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize(("version", "expected"), [("v6", "2,000"), ("v4", "2,021")])
def test_cifar10_1(arrays, tmp_path, version, expected):
    save_cifar10_1(tmp_path, *arrays, version)
    save_cifar10_1(tmp_path, arrays[0][::-1], arrays[1], {"v4": "v6", "v6": "v4"}[version])
    data = open_test(CIFAR10_1(root=str(tmp_path), version=version), config(32))
    check(data, *arrays)
    assert data.title == f"CIFAR-10.1 ({version})"
    assert f"30 of {expected} images are there" in data.notes
    assert data.images.ids[29] == "cifar-10.1/0029"


@pytest.mark.parametrize("save", [save_npz, save_npy])
def test_cifar10_2(arrays, tmp_path, save):
    save(tmp_path, *arrays)
    data = open_test(CIFAR10_2(root=str(tmp_path)), config(32))
    check(data, *arrays)
    assert "30 of 2,000 images are there" in data.notes


def test_pickles_of_older_numpy_are_read(arrays, tmp_path):
    """They name numpy.core instead of numpy._core."""
    with open(tmp_path / "protocol3.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array({"images": arrays[0], "labels": arrays[1]}, dtype=object), file, protocol=3)
    old = (tmp_path / "protocol3.npy").read_bytes().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    assert b"numpy.core" in old
    (tmp_path / "cifar102_test.npy").write_bytes(old)
    check(open_test(CIFAR10_2(root=str(tmp_path)), config(32)), *arrays)


class Payload:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_pickles_that_call_functions_are_refused(arrays, tmp_path):
    images, labels = arrays
    np.save(tmp_path / "cifar102_test.npy", {"images": images, "labels": labels, "keywords": Payload()})
    with pytest.raises(MissingData, match=r"test.npy cannot be read \(it is a pickle that calls posix.system\)"):
        CIFAR10_2(root=str(tmp_path)).setup()
    np.savez(tmp_path / "cifar102_test.npz", images=np.array([Payload()], dtype=object), labels=labels)
    with pytest.raises(MissingData, match=r"test.npz cannot be read \(Object arrays cannot be loaded"):
        CIFAR10_2(root=str(tmp_path)).setup()


def test_damaged_arrays_are_refused(arrays, tmp_path):
    images, labels = arrays
    save_cifar10_1(tmp_path, images.transpose(0, 3, 1, 2), labels)
    with pytest.raises(UserError, match=r"has images of shape \(30, 3, 32, 32\) and type uint8, and labels \(30,\)"):
        CIFAR10_1(root=str(tmp_path)).setup()
    for wrong in (labels + 1, labels - 10, labels + 0.5, labels[:-1], labels.astype(str)):
        save_cifar10_1(tmp_path, images, labels)
        np.save(tmp_path / "cifar10.1_v6_labels.npy", wrong)
        with pytest.raises(UserError, match="expected the published arrays, .*, from 0 to 9"):
            CIFAR10_1(root=str(tmp_path)).setup()
    path = tmp_path / "cifar10.1_v6_data.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MissingData, match=r"data.npy is truncated or damaged \(5,000 bytes\)"):
        CIFAR10_1(root=str(tmp_path)).setup()
    huge = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,)}"
    for content in (b"PK\3\4", b"\x93NUMPY\1\0" + len(huge).to_bytes(2, "little") + huge, b""):
        path.write_bytes(content)
        with pytest.raises(MissingData, match=r"data.npy is truncated or damaged"):
            CIFAR10_1(root=str(tmp_path)).setup()
    np.savez(tmp_path / "archive.npz", images=images)
    (tmp_path / "archive.npz").rename(path)
    with pytest.raises(MissingData, match=r"data.npy is an archive, expected one array"):
        CIFAR10_1(root=str(tmp_path)).setup()
    with pytest.raises(MissingData, match=r"CIFAR-10.1 \(v4\): there is no file .*cifar10.1_v4_data.npy; it is"):
        CIFAR10_1(root=str(tmp_path), version="v4").setup()
    with pytest.raises(MissingData, match=r"there is neither .*cifar102_test.npz nor cifar102_test.npy"):
        CIFAR10_2(root=str(tmp_path)).setup()
    for content in (b"", b"PK", b"not an array", b"\x93NUMPY\x01\x00"):
        (tmp_path / "cifar102_test.npy").write_bytes(content)
        with pytest.raises(MissingData, match=r"cifar102_test.npy cannot be read"):
            CIFAR10_2(root=str(tmp_path)).setup()
    save_npz(tmp_path, *arrays)
    path = tmp_path / "cifar102_test.npz"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(MissingData, match=r"cifar102_test.npz cannot be read"):
        CIFAR10_2(root=str(tmp_path)).setup()
