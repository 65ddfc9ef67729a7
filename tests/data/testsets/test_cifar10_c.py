import numpy as np
import pytest
import torch

from nsaug.data import CIFAR10C, MissingData
from nsaug.utils.errors import UserError
from tests.data.helpers import config, open_test


@pytest.fixture
def arrays(tmp_path):
    """20 images at 5 severities, and their labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * 20, 32, 32, 3), dtype=np.uint8)
    labels = np.tile(rng.integers(0, 10, 20), 5)
    np.save(tmp_path / "frost.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    return images, labels


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_pixels_are_kept(arrays, tmp_path, severity):
    images, labels = arrays
    data = open_test(CIFAR10C(root=str(tmp_path), corruption="frost", severity=severity), config(32))
    assert len(data.images) == 20
    assert data.images.labels == labels[:20].tolist()
    assert data.class_names[3] == "cat"
    for index in (0, 7, 19):
        expected = torch.tensor(images[(severity - 1) * 20 + index]).permute(2, 0, 1) / 255
        torch.testing.assert_close(data.images[index][0], expected)
    assert data.notes == ["stored", "20 of 10,000 images are there"]
    assert data.cache_fields == {"class": "CIFAR10C", "corruption": "frost", "severity": severity}
    data.configure(config(224))
    assert data.images[0][0].shape == (3, 224, 224)
    assert data.notes[-1] == "resized from 32 to 224 px"


def test_damaged_arrays_are_refused(arrays, tmp_path):
    images, labels = arrays

    def setup(corruption="frost"):
        CIFAR10C(root=str(tmp_path), corruption=corruption, severity=1).setup()

    np.save(tmp_path / "labels.npy", np.sort(labels))
    with pytest.raises(UserError, match="labels have to be the same at all severities"):
        setup()
    np.save(tmp_path / "fog.npy", images.transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match=r"has shape \(100, 3, 32, 32\) and type uint8"):
        setup("fog")
    content = (tmp_path / "frost.npy").read_bytes()
    (tmp_path / "frost.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(MissingData, match=r"frost.npy is truncated or damaged \(153,"):
        setup()
    with pytest.raises(MissingData, match=r"CIFAR-10-C: there is no file .*snow.npy; it is published at"):
        setup("snow")
