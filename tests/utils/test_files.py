import os

import pytest

from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write, read_lines
from nsaug.utils.text import printable


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_read_lines(tmp_path, encoding):
    (tmp_path / "names.txt").write_bytes("bär\r\n\n  a b\u2028c \rlast".encode(encoding))
    assert read_lines(str(tmp_path / "names.txt"), "x", "names") == ["bär", "a b\u2028c", "last"]


def test_text_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "utf-16.txt").write_bytes("a\nb".encode("utf-16"))
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    reasons = {
        "pipe.txt": "cannot be read (it is not a regular file)",
        "utf-16.txt": "is not text in UTF-8",
        "empty.txt": "is empty",
        "gone.txt": "does not exist",
        "": "cannot be read (it is not a regular file)",
        "x" * 300: "cannot be read (File name too long)",
        "a\0b": "cannot be read (embedded null byte)",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError) as error:
            read_lines(f"{tmp_path}/{name}", "data.classes", "one class per line")
        path = printable(f"{tmp_path}/{name}")
        assert str(error.value) == f"data.classes={path} {reason}: name a text file with one class per line"
