"""Hashes of image contents, remembered between runs so that unchanged files are not read again.

Fingerprints depend on contents only: copies of a data set on several machines have the same ones. The memo of a folder
or archive is a JSON file in the user's cache folder, ($XDG_CACHE_HOME or ~/.cache)/nsaug/fingerprints/. It only saves
time: where it cannot be read or written, or is damaged, images are hashed again. When several processes write it at
the same time, the last one wins; the next run hashes what it lacks.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write, open_regular

UNREADABLE = "unreadable"
"""The fingerprint of an image that cannot be opened."""
NUM_THREADS = 16
"""More than most machines have cores: threads mostly wait for storage."""
BLOCK_SIZE = 64
"""Images that a thread takes at a time."""

Result = TypeVar("Result")


class Stamp(NamedTuple):
    """The name of a stored image, and text that changes on this machine when its file does."""

    name: str
    version: str


@runtime_checkable
class StoredLoader(Protocol):
    """A loader of stored images. Its fingerprints are remembered."""

    @property
    def store(self) -> str:
        """Absolute path of the folder or archive that contains all of its images."""
        ...

    def stamp(self, index: int) -> Stamp | None:
        """Name and version of an image, without reading it; None if there is no such file."""
        ...

    def fingerprint(self, index: int) -> str:
        """Hash the content of an image; `UNREADABLE` if it cannot be opened."""
        ...


def hash_bytes(content: bytes) -> str:
    """Hash a few bytes or many, fast: 128 bits of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def hash_file(path: str) -> str:
    """Hash the content of a file; `UNREADABLE` if it cannot be opened."""
    try:
        with open_regular(path) as file:
            return hash_bytes(file.read())
    except OSError:
        return UNREADABLE


def file_version(path: str | Path) -> str | None:
    """Size and modification time of a file; None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def fingerprints(load: Any, positions: Sequence[int]) -> list[str]:
    """Fingerprints of the images of a loader at these positions.

    Raises:
        UserError: the loader has no method `fingerprint`.
    """
    if not hasattr(load, "fingerprint"):
        raise UserError(
            f"{type(load).__qualname__} has no method fingerprint(index): add one that returns text that changes when"
            " the image does, such as a hash of its bytes"
        )
    if not positions or not isinstance(load, StoredLoader):
        return [load.fingerprint(position) for position in positions]
    memo = _read_memo(load.store)
    stamps = _map_in_threads(load.stamp, positions)
    new = [position for position, stamp in zip(positions, stamps, strict=True) if stamp not in memo]
    hashes = dict(zip(new, _map_in_threads(load.fingerprint, new), strict=True))
    contents = [hashes.get(position) or memo[stamp] for position, stamp in zip(positions, stamps, strict=True)]
    known = {stamp: content for stamp, content in zip(stamps, contents, strict=True) if content != UNREADABLE}
    if known.keys() - memo.keys():
        _update_memo(load.store, known)
    return contents


def _map_in_threads(function: Callable[[int], Result], positions: Sequence[int]) -> list[Result]:
    blocks = [positions[start : start + BLOCK_SIZE] for start in range(0, len(positions), BLOCK_SIZE)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(lambda block: [function(position) for position in block], blocks)
        return [result for block in results for result in block]


def _memo_path(store: str) -> Path:
    """Path of the memo of a folder or archive; RuntimeError if the user has no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nsaug" / "fingerprints" / f"{hash_bytes(os.fsencode(store))}.json"


def _read_memo(store: str) -> dict[Stamp | None, str]:
    """Fingerprints by stamp; empty if there is no usable file."""
    try:
        entries = json.loads(_memo_path(store).read_text())
        return {Stamp(name, version): str(content) for name, (version, content) in entries.items()}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}


def _update_memo(store: str, known: dict[Stamp | None, str]) -> None:
    """Write the memo with these fingerprints, which replace those of earlier versions; give up silently."""
    merged = _read_memo(store) | known
    entries = {stamp.name: (stamp.version, content) for stamp, content in merged.items() if stamp is not None}
    try:
        with atomic_write(_memo_path(store)) as path:
            path.write_text(json.dumps(entries))
    except (OSError, RuntimeError):
        pass
