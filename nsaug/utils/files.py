"""Reading of regular files only, and atomic writing."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nsaug.utils.errors import UserError, os_reason


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: there is none, or it is of another kind, such as a pipe, where opening waits for ever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")
    return open(path, "rb")


def read_lines(path: str, setting: str, content: str) -> list[str]:
    """The lines of a text file that a setting names, stripped; empty ones are left out.

    Args:
        path: the file, in UTF-8 with or without a byte-order mark.
        setting: name of the setting, for messages.
        content: what the file holds, for messages.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        with open_regular(os.path.expanduser(path)) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{setting}={path} is not text in UTF-8: name a text file with {content}") from error
    except (OSError, ValueError) as error:  # ValueError: the path has a zero byte
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({os_reason(error)})"
        raise UserError(f"{setting}={path} {reason}: name a text file with {content}") from error
    lines = [line for line in map(str.strip, text.replace("\r", "\n").split("\n")) if line]
    if not lines:
        raise UserError(f"{setting}={path} is empty: name a text file with {content}")
    return lines


@contextmanager
def atomic_write(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it to `path` on a normal exit.

    After an error `path` is unchanged.

    Args:
        path: the file to write.
        durable: whether the data are on disk (fsync) before `path` refers to them; otherwise a power failure, but no
            killed process, may leave an empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp_path
        if durable:
            with open(tmp_path, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)
