"""Checkpoints: written whole or not at all, read without trusting pickles, and handed back to plain timm.

A run's folder holds `last.ckpt` (Lightning's, to resume from), and beside it `model.safetensors` and `config.json`,
which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads. What nsaug itself needs to know of the run
(method, seed, data) stands in config.json under the key `nsaug`, which timm ignores.
"""

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

from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def save_config(folder: str | Path, model: Any, model_args: dict[str, Any], record: dict[str, Any]) -> None:
    """Writes `config.json` into `folder`: what timm and nsaug have to know of the weights beside it.

    Args:
        folder: a run's own.
        model: the timm model, its `pretrained_cfg` describing the images it takes.
        model_args: what `timm.create_model` was given beyond the name and the class count.
        record: what nsaug wants to know of the run, as plain JSON values.
    """
    with atomic_write(Path(folder) / CONFIG) as draft:
        save_config_for_hf(model, draft, model_config={"nsaug": record}, model_args=model_args)


def save_weights(folder: str | Path, model: Any) -> None:
    """Writes `model.safetensors` into `folder`; with `config.json` beside it, plain timm loads the folder."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(Path(folder) / WEIGHTS) as draft:
        # Not save_file: what it writes is readable by its owner alone.
        draft.write_bytes(save(tensors, metadata={"format": "pt"}))


def resolve_path(path: str | Path) -> Path:
    """The weights file that a user means by `path`: the file itself, or the one that a run's folder holds.

    Raises:
        UserError: nothing there, or nothing that holds weights.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise UserError(f"checkpoint={path} is a folder without {WEIGHTS}: name a run's output folder or a file")
        return path / WEIGHTS
    if not path.is_file():
        raise UserError(f"checkpoint={path} does not exist: name a run's output folder or a {', '.join(SUFFIXES)} file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"checkpoint={path} is no {', '.join(SUFFIXES)} file")
    return path


def read_config(path: str | Path) -> dict[str, Any] | None:
    """config.json beside the weights at `path`, or None where there is none."""
    config = resolve_path(path).with_name(CONFIG)
    return json.loads(config.read_text()) if config.is_file() else None


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What the run in a folder left of itself in config.json; empty where it left nothing."""
    config = Path(folder) / CONFIG
    return json.loads(config.read_text()).get("nsaug", {}) if config.is_file() else {}


def run_name(path: str | Path) -> str:
    """What tables call the weights at `path`: the name of the run that left them, else the name of the file."""
    record = (read_config(path) or {}).get("nsaug", {})
    file = resolve_path(path)
    return record.get("name") or (file.parent.name if file.name == WEIGHTS else file.stem)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth, .pt, .bin or Lightning .ckpt file, on the CPU, with timm's own keys.

    Files that wrap it (`model`, `state_dict`, their EMA first) are unwrapped; prefixes that training adds are
    dropped. Pickled objects are never executed (`weights_only`).

    Raises:
        UserError: the file is missing, damaged, or holds something other than tensors.
    """
    path = resolve_path(path)
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint={path} is damaged or holds pickled objects, which are not loaded: save its state dict alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"checkpoint={path} cannot be read: {first_line(error)}") from error

    wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = content if isinstance(content, dict) else {}
    state = next((state[key] for key in wrappers if isinstance(state.get(key), dict)), state)
    if any(key.startswith("vit.") for key in state):  # a Finetuner: its method and metrics stay behind
        state = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    state = clean_state_dict(state)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint={path} holds no state dict: expected tensors by name, or under model/state_dict")
    return state
