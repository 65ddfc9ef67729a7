"""Who is judged: checkpoints of runs, foreign weights, plain timm models."""

import dataclasses
import glob
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsaug.models.weights import CONFIG, SUFFIXES, WEIGHTS, read_config, resolve_path, run_name
from nsaug.utils.errors import UserError
from nsaug.utils.types import flatten

log = logging.getLogger(__name__)

REPEATED = re.compile(r"method\.(match_compute_of\.)?synthesis\.")
"""Settings of a method that stand under `nullspace` already."""


@dataclass(frozen=True)
class EvalModel:
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
        """`build_vit`'s arguments, from what config.json says; a timm name's hub weights for a subject of that kind."""
        if self.checkpoint is None:
            return {"name": self.name, "pretrained": True}
        if self.config is None:
            raise UserError(f"checkpoint={self.checkpoint} has no config.json beside it: add model=... and data=...")
        args = self.config.get("model_args", {})
        # The class count and the image size come with the weights.
        own = {key: value for key, value in args.items() if key not in ("num_classes", "in_chans", "img_size")}
        return {"name": self.config["architecture"], "args": own, "checkpoint": self.checkpoint}


TIMM = "timm:"


def find_models(checkpoint: str | list[str] | None, model_name: str | None) -> list[EvalModel]:
    """The models that `checkpoint=` means: paths, globs, and timm models as `timm:NAME`; that of `model=` where None.

    Raises:
        UserError: nothing to judge, or a path without weights.
    """
    given = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    if not given:
        if model_name is None:
            raise UserError("nothing to judge: type checkpoint=PATH (a run's folder, a file, a glob) or model=vit_s")
        return [EvalModel(None, None, {}, model_name)]
    found: dict[Any, EvalModel] = {}
    for pattern in given:
        if pattern.startswith(TIMM):
            found.setdefault(pattern, EvalModel(None, None, {}, pattern.removeprefix(TIMM)))
            continue
        for file in _expand(pattern):
            config = read_config(file)
            record = (config or {}).get("nsaug", {})
            found.setdefault(file.resolve(), EvalModel(str(file), config, record, run_name(file)))
    return _told_apart(list(found.values()))


def _expand(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [resolve_path(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in paths if _holds_weights(path)]
    if not runs:
        raise UserError(f"checkpoint={pattern} matches no run's folder and no weights file ({len(paths)} other paths)")
    for path in paths:
        if (path / CONFIG).is_file() and path not in runs:
            log.warning("%s is left out: its run did not end (checkpoint=%s/last.ckpt judges it as it was)", path, path)
    return [resolve_path(path) for path in runs]


def _holds_weights(path: Path) -> bool:
    """Whether a path that a glob found is meant: a run's folder, its weights, or a file of weights that no run left."""
    if path.is_dir():
        return (path / WEIGHTS).is_file()
    return path.name == WEIGHTS or (path.suffix in SUFFIXES and not (path.parent / WEIGHTS).is_file())


def _told_apart(subjects: list[EvalModel]) -> list[EvalModel]:
    """Names under which only runs that differ by nothing but their seed are alike.

    Runs of one name that differ in another setting get that setting into their name; what is alike even in its seed,
    or has none, gets its path.
    """
    named = []
    for subject in subjects:
        namesakes = [flatten(other.record.get("settings", {})) for other in subjects if other.name == subject.name]
        own = flatten(subject.record.get("settings", {}))
        keys = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        suffix = "".join(f" {key}={own[key]}" for key in keys if not REPEATED.match(key))
        named.append(dataclasses.replace(subject, name=subject.name + suffix))
    alike = Counter((subject.name, subject.record.get("seed")) for subject in named)
    return [
        dataclasses.replace(subject, name=f"{subject.name} {subject.checkpoint}")
        if alike[subject.name, subject.record.get("seed")] > 1
        else subject
        for subject in named
    ]
