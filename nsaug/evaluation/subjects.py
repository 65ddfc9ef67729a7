"""Who is judged: checkpoints of runs, foreign weights, plain timm models."""

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsaug.checkpoints import SUFFIXES, WEIGHTS, locate, read_config
from nsaug.settings import NsaugError

REPEATED = re.compile(r"method\.(compute_of\.)?synthesis\.")
"""Settings of a method that stand under `nullspace` already."""


@dataclass(frozen=True)
class Subject:
    """One model to judge.

    Attributes:
        checkpoint: the weights file; None for a plain timm model.
        config: its config.json; None for weights without one.
        record: what the run left in it; empty for other weights.
        name: what tables call it; the same for runs that differ by their seed alone.
    """

    checkpoint: str | None
    config: dict[str, Any] | None
    record: dict[str, Any]
    name: str

    @property
    def label(self) -> str:
        """What a person tells it by."""
        seed = self.record.get("seed")
        return self.name if seed is None else f"{self.name}, seed {seed}"

    @property
    def columns(self) -> dict[str, Any]:
        """What tells its rows from others."""
        return {
            "checkpoint": self.checkpoint,
            "name": self.name,
            "method": self.record.get("method"),
            "seed": self.record.get("seed"),
        }

    def model(self) -> dict[str, Any]:
        """`build_vit`'s arguments, from what config.json says."""
        if self.config is None:
            raise NsaugError(f"checkpoint={self.checkpoint} has no config.json beside it: add model=... and data=...")
        args = self.config.get("model_args", {})
        # The class count and the image size come with the weights.
        own = {key: value for key, value in args.items() if key not in ("num_classes", "in_chans", "img_size")}
        return {"name": self.config["architecture"], "args": own, "checkpoint": self.checkpoint}


def find_subjects(checkpoint: str | list[str] | None, model_name: str | None) -> list[Subject]:
    """The models that `checkpoint=` means: one path, several, or globs; the timm model where it is None.

    Raises:
        NsaugError: nothing to judge, or a path without weights.
    """
    if checkpoint is None:
        if model_name is None:
            raise NsaugError("nothing to judge: type checkpoint=PATH (a run's folder, a file, a glob) or model=vit_s")
        return [Subject(None, None, {}, model_name)]
    given = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    files = list(dict.fromkeys(file for pattern in given for file in _expand(pattern)))
    found = []
    for file in files:
        config = read_config(file)
        record = (config or {}).get("nsaug", {})
        found.append(Subject(str(file), config, record, record.get("name") or _place(file)))
    return _told_apart(found)


def _expand(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [locate(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in paths if path.suffix in SUFFIXES or (path / WEIGHTS).is_file()]
    if not runs:
        raise NsaugError(f"checkpoint={pattern} matches no run's folder and no weights file ({len(paths)} other paths)")
    return [locate(path) for path in runs]


def _place(file: Path) -> str:
    return file.parent.name if file.name == WEIGHTS else file.stem


def _told_apart(subjects: list[Subject]) -> list[Subject]:
    """Runs of one name that differ in a setting other than the seed get that setting into their name."""
    named = []
    for subject in subjects:
        namesakes = [_flat(other.record.get("settings", {})) for other in subjects if other.name == subject.name]
        own = _flat(subject.record.get("settings", {}))
        keys = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        suffix = "".join(f" {key}={own[key]}" for key in keys if not REPEATED.match(key))
        named.append(Subject(subject.checkpoint, subject.config, subject.record, subject.name + suffix))
    return named


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings if isinstance(settings, str | int | float | None) else json.dumps(settings)}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
