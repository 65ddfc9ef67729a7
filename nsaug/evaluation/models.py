"""Models to evaluate: checkpoints of runs, other weights, timm models."""

import dataclasses
import glob
import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.run_config import CONFIG, RunConfig, label_names
from nsaug.models.weights import (
    FOLDER_FILES,
    SUFFIXES,
    find_transformers_config,
    find_weights,
    read_config,
    resolve_path,
    run_name,
)
from nsaug.utils.errors import UserError, as_setting
from nsaug.utils.files import is_dir, is_file
from nsaug.utils.types import flatten

log = logging.getLogger(__name__)

DUPLICATED_KEYS = re.compile(r"method\.(match_compute_of\.)?noise\.(?!match$)")
"""Settings of a method that repeat those under `nullspace`."""


@dataclass(frozen=True)
class EvalModel:
    """One model to evaluate.

    Attributes:
        checkpoint: weights file; None for a timm model.
        config: content of its config.json; None if there is none.
        metadata: what the training run recorded in config.json (`RunMetadata`); empty for other weights.
        name: name in tables; runs that differ only in their seed share it.
        label_names: class names by index in a config.json of timm or transformers; None if it states none.
        fingerprint: of what a model in memory computes, which no file tells; empty for others.
    """

    checkpoint: str | None
    config: RunConfig | None
    metadata: dict[str, Any]
    name: str
    label_names: list[str] | None = None
    fingerprint: str = ""

    @property
    def class_names(self) -> list[str] | None:
        """By class index, recorded by the run or stated with the weights; None if unknown."""
        return self.metadata.get("class_names") or self.label_names

    @property
    def label(self) -> str:
        """Name and seed, for messages and titles."""
        seed = self.metadata.get("seed")
        return self.name if seed is None else f"{self.name}, seed {seed}"

    @property
    def config_file(self) -> str:
        """Where the metadata come from, for messages."""
        return str(Path(self.checkpoint).with_name(CONFIG)) if self.checkpoint and self.config else self.name

    @property
    def columns(self) -> dict[str, Any]:
        """Columns that identify the model in result tables."""
        return {
            "checkpoint": self.checkpoint,
            "name": self.name,
            "method": self.metadata.get("method"),
            "seed": self.metadata.get("seed"),
        }

    def build_args(self) -> dict[str, Any]:
        """Arguments of `build_vit`, from config.json or, for a timm model, its name and the hub's weights.

        Raises:
            UserError: a checkpoint without config.json.
        """
        if self.checkpoint is None:
            return {"name": self.name, "pretrained": True}
        if self.config is None:
            raise UserError(
                f"checkpoint={self.checkpoint} has no config.json of nsaug or timm beside it: add model=... and"
                " data=..."
            )
        args = self.config.get("model_args", {})
        # The number of classes and the image size follow from the weights.
        args = {key: value for key, value in args.items() if key not in ("num_classes", "in_chans", "img_size")}
        return {"name": self.config["architecture"], "args": args, "checkpoint": self.checkpoint}


@dataclass(frozen=True)
class UnreadableModel:
    """A run or weights file that cannot be evaluated.

    Attributes:
        checkpoint: weights file.
        reason: one line that names the file and what is wrong with it.
    """

    checkpoint: str
    reason: str


TIMM = "timm:"


def find_models(
    checkpoint: str | list[str] | None, model_name: str | None
) -> tuple[list[EvalModel], list[UnreadableModel]]:
    """Find the models named by `checkpoint=`: paths, globs, and timm models as `timm:NAME`.

    Args:
        checkpoint: one or more of these; None evaluates `model_name`.
        model_name: timm name given by `model=`.

    Returns:
        The models, at least one, and those whose config.json is damaged.

    Raises:
        UserError: no model is named, a path has no weights, or no model can be read.
    """
    patterns = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    if not patterns:
        if model_name is None:
            raise UserError("no model to evaluate: type checkpoint=PATH (a run folder, a file, a glob) or model=vit_s")
        return [EvalModel(None, None, {}, model_name)], []
    models: dict[Any, EvalModel] = {}
    unreadable: dict[Any, UnreadableModel] = {}
    for pattern in patterns:
        if pattern.startswith(TIMM):
            models.setdefault(pattern, EvalModel(None, None, {}, pattern.removeprefix(TIMM)))
            continue
        for file in _expand(pattern):
            try:
                models.setdefault(file.resolve(), _read_model(file))
            except UserError as error:
                unreadable[file.resolve()] = UnreadableModel(str(file), str(error))
    if not models:
        raise UserError(next(iter(unreadable.values())).reason)
    return disambiguate(list(models.values())), list(unreadable.values())


def _read_model(file: Path) -> EvalModel:
    config = read_config(file)
    metadata: Any = (config or {}).get("nsaug", {})
    names = label_names(config or find_transformers_config(file))
    return EvalModel(str(file), config, metadata, run_name(file, metadata), names)


def _expand(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern) or is_file(pattern) or is_dir(pattern):
        return [resolve_path(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in paths if _has_weights(path)]
    if not runs:
        raise UserError(f"checkpoint={pattern} matches no run folder and no weights file ({len(paths)} other paths)")
    for path in paths:
        if is_file(path / CONFIG) and path not in runs:
            setting = as_setting("checkpoint", path / "last.ckpt")
            log.warning("skipping %s: its run did not finish (to evaluate it: %s)", path, setting)
    return [resolve_path(path) for path in runs]


def _has_weights(path: Path) -> bool:
    """Whether a path is a finished run's folder, its weights, or a weights file outside a run's folder."""
    if is_dir(path):
        return find_weights(path) is not None
    return path.name in FOLDER_FILES or (path.suffix in SUFFIXES and find_weights(path.parent) is None)


def disambiguate(models: list[EvalModel]) -> list[EvalModel]:
    """Rename models so that only runs that differ in nothing but their seed share a name.

    Settings that differ between runs of one name are appended to it. Models that still share both name and seed, or
    have no seed, get their path appended.
    """
    renamed = []
    for model in models:
        same_name = [flatten(other.metadata.get("settings", {})) for other in models if other.name == model.name]
        settings = flatten(model.metadata.get("settings", {}))
        keys = [key for key in settings if any(other.get(key) != settings[key] for other in same_name)]
        suffix = "".join(f" {key}={settings[key]}" for key in keys if not DUPLICATED_KEYS.match(key))
        renamed.append(dataclasses.replace(model, name=model.name + suffix))
    counts = Counter((model.name, model.metadata.get("seed")) for model in renamed)
    return [
        dataclasses.replace(model, name=f"{model.name} {model.checkpoint}")
        if counts[model.name, model.metadata.get("seed")] > 1
        else model
        for model in renamed
    ]


def model_digest(vit: NoisyViT, fingerprint: str = "") -> str:
    """SHA-256 of a model's architecture, input configuration and weights, and its `EvalModel.fingerprint`."""
    config = {"args": vit.model_args, "data": vit.data_config, "architecture": vit.model.pretrained_cfg["architecture"]}
    if vit.norm_eps is not None:
        config["norm_eps"] = vit.norm_eps
    if fingerprint:
        config["fingerprint"] = fingerprint
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(vit.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
