"""Outputs of benchmarks and analyses as plain values and arrays, for files that are read without executing anything."""

import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from nsaug.evaluation.metrics import FIELDS, PerImageScores
from nsaug.evaluation.results import AnalysisResult, Measurement, PerImageResult

KINDS = {
    **dict.fromkeys(("label", "prediction"), "iu"),
    **dict.fromkeys(("top1", "top5"), "b"),
    **dict.fromkeys(("confidence", "nll", "brier"), "f"),
}
"""Kinds of numpy dtypes of the arrays in a file."""
DAMAGE = (
    ValueError, LookupError, TypeError, EOFError, RecursionError, NotImplementedError, OverflowError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors that reading a damaged or forged file may raise, besides OSError."""


class OutputValues(BaseModel):
    """The plain values of an output; a forged file has others and is refused."""

    model_config = ConfigDict(extra="forbid")

    notes: list[str]
    measurements: list[tuple[str, float | None, str, int, float]] | None = None
    titles: list[str] = []


def encode(output: PerImageResult | AnalysisResult) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plain values and arrays of an output, all but its image ids."""
    values: dict[str, Any] = {"notes": list(output.notes)}
    if isinstance(output, AnalysisResult):
        values |= {"measurements": output.measurements, "titles": output.titles}
        return values, {"images": np.array(output.images, np.uint8), "noises": output.noises}
    arrays = {name: getattr(output.scores, name) for name in FIELDS} | {"sample_images": output.sample_images}
    return values, arrays | {f"extra {name}": array for name, array in output.scores.extra.items()}


def decode(values: OutputValues, ids: list[str], arrays: Mapping[str, np.ndarray]) -> PerImageResult | AnalysisResult:
    """Build an output from the values and arrays of `encode`.

    Raises:
        ValueError, KeyError: they are not those of an output on these images.
    """
    if values.measurements is not None:
        images, noises = arrays["images"], arrays["noises"]
        if len(images) != len(values.titles) or noises.ndim != 3 or noises.dtype.kind != "f":
            raise ValueError("images or noises of an unexpected type")
        if len(images) and not _are_images(images):
            raise ValueError("images of an unexpected type")
        measurements = [Measurement(*items) for items in values.measurements]
        return AnalysisResult(measurements, ids, values.titles, list(images), noises, tuple(values.notes))
    extra = {name.removeprefix("extra "): array for name, array in arrays.items() if name.startswith("extra ")}
    for name, array in {**{name: arrays[name] for name in FIELDS}, **extra}.items():
        if array.shape != (len(ids),) or array.dtype.kind not in KINDS.get(name, "biuf"):
            raise ValueError(f"{name} of an unexpected type")
    samples = arrays["sample_images"]
    if not _are_images(samples) or len(samples) > len(ids):
        raise ValueError("sample images of an unexpected type")
    fields: dict[str, Any] = {name: arrays[name] for name in FIELDS}
    return PerImageResult(ids, PerImageScores(**fields, extra=extra), samples, tuple(values.notes))


def _are_images(images: np.ndarray) -> bool:
    return images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3
