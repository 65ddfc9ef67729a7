"""Atomic writing of files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
