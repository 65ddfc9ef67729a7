"""On-disk cache of benchmark results, keyed by everything that a result depends on.

A cached result is reused only if the weights, the images, the benchmark's settings, the seed and the kind of device
are all the same.
"""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nsaug.evaluation.metrics import FIELDS, PerImageScores
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.files import atomic_write

VERSION = 2
"""Raise it whenever the same settings would give a different result or file format."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that a result depends on.

    Attributes:
        model: path of the checkpoint, or name of the timm model.
        benchmark: name in the suite.
        parts: digests and settings: weights, data, benchmark settings, seed, device.
    """

    model: str
    benchmark: str
    parts: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identifies the computation; independent of the path and of names."""
        return _digest(self.parts | {"version": VERSION})

    @property
    def name_digest(self) -> str:
        """Identifies the pair of model path and benchmark name, whatever their content."""
        return _digest({"model": self.model, "benchmark": self.benchmark})


@dataclass(frozen=True)
class PerImageResult:
    """Scores of one model on one benchmark.

    Attributes:
        strengths: the benchmark's strengths; (None,) if it has none.
        ids: ids of the n images.
        scores: one entry per strength.
        sample_indices: indices of k sample images.
        sample_images: (strengths, k, H, W, 3) in uint8, as the model saw them.
    """

    strengths: tuple[float | None, ...]
    ids: list[str]
    scores: list[PerImageScores]
    sample_indices: list[int]
    sample_images: np.ndarray


class Measurement(NamedTuple):
    """One number of an analysis.

    Attributes:
        condition: kind of noise, or whatever else was measured.
        strength: strength of the condition; None if it has none.
        metric: name of the metric.
        noise_index: index of the noise, if several were measured.
        value: the number.
    """

    condition: str
    strength: float | None
    metric: str
    noise_index: int
    value: float


@dataclass(frozen=True)
class AnalysisResult:
    """Measurements of one model.

    Attributes:
        measurements: all numbers.
        ids: ids of the images that were measured on.
        titles: titles of the images to show in the report.
        images: the images to show, (H, W, 3) in uint8, all of one size.
        noises: (M, N, D), for analyses that transfer them to other models.
    """

    measurements: list[Measurement]
    ids: list[str]
    titles: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    noises: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


class ResultCache:
    """A folder of results; files are written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: CacheKey) -> PerImageResult | AnalysisResult | None:
        """Return the cached result; None if it is missing or damaged."""
        arrays = _read(self._path(key))
        if arrays is None:
            return None
        try:
            meta = json.loads(str(arrays["meta"]))
            ids = arrays["ids"].tolist()
            if "measurements" in meta:
                measurements = [Measurement(*values) for values in meta["measurements"]]
                return AnalysisResult(measurements, ids, meta["titles"], list(arrays["images"]), arrays["noises"])
            strengths = tuple(meta["strengths"])
            scores = [PerImageScores(**{name: arrays[name][i] for name in FIELDS}) for i in range(len(strengths))]
            return PerImageResult(strengths, ids, scores, arrays["sample_indices"].tolist(), arrays["sample_images"])
        except KeyError:
            return None

    def save(self, key: CacheKey, result: PerImageResult | AnalysisResult) -> None:
        arrays: dict[str, Any]
        if isinstance(result, AnalysisResult):
            meta: dict[str, Any] = {"measurements": result.measurements, "titles": result.titles}
            arrays = {"images": np.array(result.images), "noises": result.noises}
        else:
            meta = {"strengths": result.strengths}
            arrays = {name: np.stack([getattr(scores, name) for scores in result.scores]) for name in FIELDS}
            arrays |= {
                "sample_indices": np.array(result.sample_indices, int),
                "sample_images": result.sample_images,
            }
        with atomic_write(self._path(key)) as tmp_path, open(tmp_path, "wb") as file:
            np.savez_compressed(file, meta=json.dumps(meta), ids=np.array(result.ids), **arrays)
        with atomic_write(self._latest_path(key)) as tmp_path:
            tmp_path.write_text(json.dumps(key.parts))

    def changed_parts(self, key: CacheKey) -> list[str]:
        """Parts that differ from the latest result of this model and benchmark; empty if there is none."""
        try:
            latest = json.loads(self._latest_path(key).read_text())
        except (OSError, ValueError):
            return []
        return [part for part, value in key.parts.items() if latest.get(part) != value]

    def _path(self, key: CacheKey) -> Path:
        return self.folder / f"{key.digest}.npz"

    def _latest_path(self, key: CacheKey) -> Path:
        return self.folder / "latest" / f"{key.name_digest}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """Return the arrays of a file; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(value: Any) -> str:
    """SHA-256 of the JSON form of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def model_digest(vit: NoisyViT) -> str:
    """SHA-256 of a model's architecture, input configuration and weights."""
    config = {"args": vit.model_args, "data": vit.data_config, "architecture": vit.model.pretrained_cfg["architecture"]}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(vit.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
