"""Reading of regular files only, atomic writing, and locks on folders."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nsaug.utils.errors import UserError, first_line, os_reason


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: there is none, or it is of another kind, such as a pipe, where opening waits forever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")
    return open(path, "rb")


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file, or a link to one.

    Path.is_file would raise an OSError for a name that is too long, and for one in a folder that may not be opened.
    """
    return os.path.isfile(path)


def is_dir(path: str | Path) -> bool:
    """Whether there is a folder, or a link to one; raises no OSError, as for `is_file`."""
    return os.path.isdir(path)


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

    After an error `path` is unchanged; an OSError names it.

    Args:
        path: the file to write.
        durable: whether the data are on disk (fsync) before `path` refers to them; otherwise a power failure, but no
            killed process, may leave an empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: on a shared disk, machines and containers have processes of the same id.
    tmp_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield tmp_path
        if durable:
            with open(tmp_path, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(tmp_path, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # it may be missing, and so may its folder
            tmp_path.unlink()


@contextmanager
def lock_folder(folder: Path, purpose: str) -> Iterator[None]:
    """Refuse to start if another process holds the lock of this folder for the same purpose.

    The kernel releases the lock when the process ends, however it ends. Forked processes do not hold it. A file system
    without locks, such as some network disks, is used without one.

    Args:
        folder: is created if it is missing.
        purpose: part of the name of the lock file, which stays in the folder.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    import fcntl  # here: Windows has none, and reading weights and data does not need it

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f".{purpose}.lock", "a")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({first_line(error)}): type hydra.run.dir=PATH") from error
    with file:
        try:
            # Not flock: processes that load images are forked, and would hold it for seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another process is writing to {folder}: wait for it, or type another hydra.run.dir=PATH"
                ) from None
        yield
