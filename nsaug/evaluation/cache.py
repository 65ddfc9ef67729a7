"""Finished benchmarks on disk, each under a key of everything that its result depends on.

A result is found again exactly where the weights, the images, the benchmark's settings and the seed are the same: work
that is done is never repeated, and results of different things are never mixed.
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

VERSION = 1
"""Raised whenever the same settings come to mean another result."""


@dataclass(frozen=True)
class CacheKey:
    """What a result depends on, part by part.

    Attributes:
        subject: the checkpoint's path, or the timm model's name: what a user knows it by.
        benchmark: its name in the suite.
        parts: digests or settings: weights, data, benchmark, seed, device.
    """

    subject: str
    benchmark: str
    parts: dict[str, Any]

    @property
    def key(self) -> str:
        """The same for the same work, whatever path or name it goes by."""
        return _digest(self.parts | {"version": VERSION})

    @property
    def place(self) -> str:
        """The same for what a user takes for the same work, whatever has changed in it."""
        return _digest({"subject": self.subject, "benchmark": self.benchmark})


@dataclass(frozen=True)
class PerImageResult:
    """What one model did on one benchmark.

    Attributes:
        strengths: of the benchmark; (None,) where it has none.
        ids: of the images.
        judged: for each strength.
        pictured: positions of k images among them.
        pictures: (strengths, k, H, W, 3) in uint8: those as the model saw them.
    """

    strengths: tuple[float | None, ...]
    ids: list[str]
    judged: list[PerImageScores]
    pictured: list[int]
    pictures: np.ndarray


class Measurement(NamedTuple):
    """One number that an analysis found.

    Attributes:
        condition: which noise it is of, or whatever else it was measured on.
        strength: of the condition; None where it has none.
        metric: its name.
        number: which of several noises it is of.
        value: the number.
    """

    condition: str
    strength: float | None
    metric: str
    number: int
    value: float


@dataclass(frozen=True)
class AnalysisResult:
    """What an analysis found of one model.

    Attributes:
        measures: its numbers, one by one.
        ids: of the images that they were measured on.
        titles, pictures: what is to be shown, each (H, W, 3) in uint8, of one size.
        noises: (M, N, D) that another model may be given.
    """

    measures: list[Measurement]
    ids: list[str]
    titles: list[str] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    noises: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


class ResultCache:
    """A folder of results; each file is written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, identity: CacheKey) -> PerImageResult | AnalysisResult | None:
        """What was kept, or None where there is none of exactly this."""
        content = _read(self._path(identity))
        if content is None:
            return None
        try:
            meta = json.loads(str(content["meta"]))
            ids, pictures = content["ids"].tolist(), content["pictures"]
            if "measures" in meta:
                measures = [Measurement(*each) for each in meta["measures"]]
                return AnalysisResult(measures, ids, meta["titles"], list(pictures), content["noises"])
            strengths = tuple(meta["strengths"])
            judged = [
                PerImageScores(**{name: content[name][place] for name in FIELDS}) for place in range(len(strengths))
            ]
            return PerImageResult(strengths, ids, judged, content["pictured"].tolist(), pictures)
        except KeyError:
            return None

    def keep(self, identity: CacheKey, result: PerImageResult | AnalysisResult) -> None:
        arrays: dict[str, Any]
        if isinstance(result, AnalysisResult):
            meta: dict[str, Any] = {"measures": result.measures, "titles": result.titles}
            arrays = {"pictures": np.array(result.pictures), "noises": result.noises}
        else:
            meta = {"strengths": result.strengths}
            arrays = {name: np.stack([getattr(each, name) for each in result.judged]) for name in FIELDS}
            arrays |= {"pictured": np.array(result.pictured, int), "pictures": result.pictures}
        with atomic_write(self._path(identity)) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, meta=json.dumps(meta), ids=np.array(result.ids), **arrays)
        with atomic_write(self._latest(identity)) as draft:
            draft.write_text(json.dumps(identity.parts))

    def changed(self, identity: CacheKey) -> list[str]:
        """The parts in which the latest result of this subject and benchmark differs; empty without one."""
        try:
            before = json.loads(self._latest(identity).read_text())
        except (OSError, ValueError):
            return []
        return [part for part, value in identity.parts.items() if before.get(part) != value]

    def _path(self, identity: CacheKey) -> Path:
        return self.folder / f"{identity.key}.npz"

    def _latest(self, identity: CacheKey) -> Path:
        return self.folder / "latest" / f"{identity.place}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """A file's arrays; None where it is missing, or damaged: what it held is then judged anew, and replaced."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(value: Any) -> str:
    """SHA-256 of plain values, by their JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def model_digest(vit: NoisyViT) -> str:
    """SHA-256 of what a model computes with: its weights, how it is built, how it wants its images."""
    told = {"args": vit.model_args, "data": vit.data_config, "architecture": vit.model.pretrained_cfg["architecture"]}
    total = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, value in sorted(vit.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
