"""On-disk cache of results, one file for every unit of work, named by a digest of everything that it depends on.

`python -m nsaug.cli.cache` lists or deletes its content. Files are read as data (JSON and arrays without pickle); one
that is damaged, or was written by another version, is ignored and its unit computed again.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nsaug.evaluation.metrics import FIELDS, PerImageScores
from nsaug.evaluation.results import AnalysisResult, Measurement, PerImageResult
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write

VERSION = "v3"
"""Subfolder of the entries. Raise it whenever the same settings would give a different result or file format."""

KINDS = {
    **dict.fromkeys(("label", "prediction"), "iu"),
    **dict.fromkeys(("top1", "top5"), "b"),
    **dict.fromkeys(("confidence", "nll", "brier"), "f"),
}
"""Kinds of numpy dtypes of the arrays in a file."""


class _Meta(BaseModel):
    """The JSON part of a file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str
    ids: list[str]
    notes: list[str]
    measurements: list[tuple[str, float | None, str, int, float]] | None = None
    titles: list[str] = []


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
        return self._path(key).is_file()

    def load(self, key: str) -> PerImageResult | AnalysisResult | None:
        """Return a result; None if it is missing or damaged."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return _decode(dict(file))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, ValidationError):
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
                    yield _Meta.model_validate_json(str(file["meta"])).title, path
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ValidationError):
                continue

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"


def _encode(title: str, result: PerImageResult | AnalysisResult) -> dict[str, Any]:
    meta: dict[str, Any] = {"title": title, "ids": result.ids, "notes": list(result.notes)}
    if isinstance(result, AnalysisResult):
        meta |= {"measurements": result.measurements, "titles": result.titles}
        arrays = {"images": np.array(result.images, np.uint8), "noises": result.noises}
    else:
        arrays = {name: getattr(result.scores, name) for name in FIELDS} | {"sample_images": result.sample_images}
        arrays |= {f"extra {name}": values for name, values in result.scores.extra.items()}
    return {"meta": np.array(json.dumps(meta)), **arrays}


def _decode(arrays: Mapping[str, np.ndarray]) -> PerImageResult | AnalysisResult:
    """Build a result.

    Raises:
        ValueError, KeyError, ValidationError: the file has other content than `_encode` writes.
    """
    meta = _Meta.model_validate_json(str(arrays["meta"]))
    if meta.measurements is not None:
        images, noises = arrays["images"], arrays["noises"]
        if len(images) != len(meta.titles) or images.dtype != np.uint8 or noises.ndim != 3 or noises.dtype.kind != "f":
            raise ValueError("images or noises of an unexpected type")
        measurements = [Measurement(*values) for values in meta.measurements]
        return AnalysisResult(measurements, meta.ids, meta.titles, list(images), noises, tuple(meta.notes))
    extra = {name.removeprefix("extra "): values for name, values in arrays.items() if name.startswith("extra ")}
    for name, values in {**{name: arrays[name] for name in FIELDS}, **extra}.items():
        if values.shape != (len(meta.ids),) or values.dtype.kind not in KINDS.get(name, "biuf"):
            raise ValueError(f"{name} of an unexpected type")
    samples = arrays["sample_images"]
    if samples.dtype != np.uint8 or samples.ndim != 4 or len(samples) > len(meta.ids):
        raise ValueError("sample images of an unexpected type")
    fields: dict[str, Any] = {name: arrays[name] for name in FIELDS}
    scores = PerImageScores(**fields, extra=extra)
    return PerImageResult(meta.ids, scores, samples, tuple(meta.notes))
