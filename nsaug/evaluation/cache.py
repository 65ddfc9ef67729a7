"""On-disk cache of results, one file for every unit of work, named by a digest of everything that it depends on.

`python -m nsaug.cli.cache` lists or deletes its content. Files are read as data (JSON and arrays without pickle); one
that is damaged, or was written by another version, is ignored and its unit computed again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nsaug.evaluation.results import AnalysisResult, PerImageResult
from nsaug.evaluation.serialization import DAMAGE, OutputValues, decode, encode
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write, is_file

VERSION = "v3"
"""Subfolder of the entries. Raise it whenever the same settings would give a different result or file format."""


class _Meta(OutputValues):
    """The JSON part of a file."""

    title: str
    ids: list[str]


class ResultCache:
    """A folder of results; files are written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / VERSION

    def check_writable(self) -> None:
        """Raise UserError if results cannot be written."""
        try:
            with atomic_write(self.folder / "writable") as tmp_path:
                tmp_path.write_text("")
            (self.folder / "writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cache={self.folder.parent} cannot be written ({first_line(error)}): set cache to another folder"
            ) from error

    def __contains__(self, key: str) -> bool:
        return is_file(self._path(key))

    def load(self, key: str) -> PerImageResult | AnalysisResult | None:
        """Return a result; None if it is missing or damaged."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return _decode(dict(file))
        except (OSError, *DAMAGE):
            return None

    def save(self, key: str, title: str, result: PerImageResult | AnalysisResult) -> None:
        """Write a result.

        Args:
            key: digest of everything that the result depends on.
            title: model and benchmark, for `list`.
        """
        # Not durable: a damaged entry is computed again, and waiting for the disk would take longer than a small block.
        with atomic_write(self._path(key), durable=False) as tmp_path, open(tmp_path, "wb") as file:
            np.savez(file, **_encode(title, result))

    def titles(self) -> Iterator[tuple[str, Path]]:
        """Title and path of every readable entry."""
        for path in sorted(self.folder.glob("*/*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    yield _Meta.model_validate(json.loads(str(file["meta"]))).title, path
            except (OSError, *DAMAGE):
                continue

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"


def _encode(title: str, result: PerImageResult | AnalysisResult) -> dict[str, Any]:
    values, arrays = encode(result)
    return {"meta": np.array(json.dumps(values | {"title": title, "ids": result.ids})), **arrays}


def _decode(arrays: Mapping[str, np.ndarray]) -> PerImageResult | AnalysisResult:
    """Build a result.

    Raises:
        ValueError, KeyError: the file has other content than `_encode` writes.
    """
    meta = _Meta.model_validate(json.loads(str(arrays["meta"])))
    return decode(meta, meta.ids, arrays)
