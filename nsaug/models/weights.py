"""Read and write model weights: timm's format, no pickled objects, no Lightning.

A run's output folder holds `model.safetensors` and `config.json`, which plain timm loads with
`timm.create_model("local-dir:FOLDER", pretrained=True)`. nsaug's own metadata (method, seed, data) is in config.json
under the key `nsaug`, which timm ignores.
"""

import argparse
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models import clean_state_dict
from timm.models._hub import save_config_for_hf
from torch import Tensor

from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def save_config(folder: str | Path, vit: NoisyViT, metadata: dict[str, Any]) -> None:
    """Write `config.json`, which describes the weights beside it to timm and nsaug.

    Args:
        folder: a run's output folder.
        vit: the model.
        metadata: nsaug's metadata of the run, as plain JSON values.
    """
    config = {"nsaug": metadata | {"patch_embed": vit.patch_embed_name}}
    with atomic_write(Path(folder) / CONFIG) as tmp_path:
        save_config_for_hf(vit.model, tmp_path, model_config=config, model_args=vit.model_args)


def save_weights(folder: str | Path, model: Any) -> None:
    """Write the weights of a timm model to `model.safetensors`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(Path(folder) / WEIGHTS) as tmp_path:
        # Not save_file: its files are readable by their owner alone.
        tmp_path.write_bytes(save(tensors, metadata={"format": "pt"}))


def resolve_path(path: str | Path) -> Path:
    """Return the weights file that `path` refers to: the file itself, or the one in a run's output folder.

    Raises:
        UserError: no such file, or no weights in the folder.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise UserError(f"checkpoint={path} is a folder without {WEIGHTS}: name a run's output folder or a file")
        return path / WEIGHTS
    if not path.is_file():
        raise UserError(f"checkpoint={path} does not exist: name a run's output folder or a {', '.join(SUFFIXES)} file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"checkpoint={path} is not a {', '.join(SUFFIXES)} file")
    return path


def read_config(path: str | Path) -> dict[str, Any] | None:
    """Read the config.json beside the weights at `path`; None if there is none.

    Raises:
        UserError: no weights at `path`, or an invalid config.json.
    """
    file = resolve_path(path).with_name(CONFIG)
    return _read_config_file(file) if file.is_file() else None


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read nsaug's metadata from the config.json in a run's folder; empty if there is none.

    Raises:
        UserError: invalid config.json.
    """
    file = Path(folder) / CONFIG
    return _read_config_file(file).get("nsaug", {}) if file.is_file() else {}


def _read_config_file(file: Path) -> dict[str, Any]:
    advice = "restore it, or name the weights file of another folder"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({first_line(error)}): {advice}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} should hold an object, not a {type(config).__name__}: {advice}")
    for key in ("pretrained_cfg", "model_args", "nsaug"):
        if not isinstance(config.get(key, {}), dict):
            raise UserError(f"{file}: {key} should be an object, not a {type(config[key]).__name__}: {advice}")
    return config


def run_name(path: str | Path) -> str:
    """Return the display name of the weights at `path`: that of their run, else the file's or the folder's."""
    metadata = (read_config(path) or {}).get("nsaug", {})
    file = resolve_path(path)
    return metadata.get("name") or (file.parent.name if file.name == WEIGHTS else file.stem)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict from a weights file (see SUFFIXES), on the CPU, with timm's keys.

    Wrappers are removed (`model`, `state_dict`; the EMA version is preferred), and so are the prefixes that training
    adds. Pickled objects are not executed (`weights_only`).

    Raises:
        UserError: the file is missing, damaged, or holds no state dict.
    """
    path = resolve_path(path)
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the options in timm's model_best.pth.tar
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint={path} is damaged or holds pickled objects, which are not loaded: save only the state dict"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"checkpoint={path} cannot be read: {first_line(error)}") from error

    wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = content if isinstance(content, dict) else {}
    state = next((state[key] for key in wrappers if isinstance(state.get(key), dict)), state)
    if any(key.startswith("vit.") for key in state):  # a Lightning checkpoint, which also holds the method's state
        state = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    state = clean_state_dict(state)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint={path} holds no state dict: expected tensors by name, or under model/state_dict")
    return state
