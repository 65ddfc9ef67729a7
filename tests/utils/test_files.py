import os

import pytest

from nsaug.utils.files import atomic_write


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail_halfway():
        with atomic_write(path) as tmp:
            tmp.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail_halfway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_write(path) as tmp:
        tmp.write_text("new")
    assert path.read_text() == "new"
