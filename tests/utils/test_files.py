import errno
import fcntl
import os
from pathlib import Path

import pytest

from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write, is_dir, is_file, lock_folder, read_lines
from nsaug.utils.text import printable
from tests.commands import hold_lock


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


def test_error_names_the_file(tmp_path):
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"), atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_processes_of_the_same_id_write_the_same_file(tmp_path, monkeypatch):
    """As in containers on a shared disk, where each command is process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_lock_is_refused_until_its_process_dies(tmp_path):
    holder = hold_lock(tmp_path / "run", "train")
    try:
        message = f"^another process is writing to {tmp_path}/run: "
        with pytest.raises(UserError, match=message), lock_folder(tmp_path / "run", "train"):
            pass
        with lock_folder(tmp_path / "run", "evaluate"):
            pass
        holder.kill()
        holder.wait()
        with lock_folder(tmp_path / "run", "train"):
            pass
    finally:
        os.killpg(holder.pid, 9)


def test_file_system_without_locks(tmp_path, monkeypatch):
    def lockf(file, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with lock_folder(tmp_path, "train"):
        pass


def test_lock_of_a_folder_that_cannot_be_written():
    message = r"^/proc/1/x cannot be written \(.*\): type hydra.run.dir=PATH$"
    with pytest.raises(UserError, match=message), lock_folder(Path("/proc/1/x"), "train"):
        pass


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


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "gone", "file/inside"])
def test_paths_that_cannot_be_are_neither_file_nor_folder(tmp_path, name):
    (tmp_path / "file").touch()
    assert not is_file(tmp_path / name)
    assert not is_dir(tmp_path / name)
    assert is_file(tmp_path / "file")
    assert is_dir(tmp_path)
