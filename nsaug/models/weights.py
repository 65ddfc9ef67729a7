"""Read and write model weights: timm's format, no pickled objects, no Lightning.

A run's output folder holds `model.safetensors` and `config.json`, which plain timm loads with
`timm.create_model("local-dir:FOLDER", pretrained=True)`. nsaug's own metadata (method, seed, data) is in config.json
under the key `nsaug`, which timm ignores.
"""

import argparse
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from timm.models import clean_state_dict
from timm.models._hub import save_config_for_hf
from torch import Tensor

from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.run_config import CONFIG, RunConfig, RunMetadata, check_metadata, read_run_config
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def save_config(folder: str | Path, vit: NoisyViT, metadata: dict[str, Any]) -> None:
    """Write `config.json`, which describes the weights beside it to timm and nsaug.

    Args:
        folder: a run's output folder.
        vit: the model.
        metadata: nsaug's metadata of the run (`RunMetadata`), as plain JSON values.

    Raises:
        UserError: `read_config` would refuse the metadata, such as a class name with a line break.
    """
    file = Path(folder) / CONFIG
    metadata = metadata | {"patch_embed": vit.patch_embed_name}
    check_metadata(metadata, file)
    with atomic_write(file) as tmp_path:
        save_config_for_hf(vit.model, tmp_path, model_config={"nsaug": metadata}, model_args=vit.model_args)


def save_weights(folder: str | Path, model: Any) -> None:
    """Write the weights of a timm model to `model.safetensors`."""
    # Copied, because safetensors refuses tensors that share memory, as in CoaT.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
    with atomic_write(Path(folder) / WEIGHTS) as tmp_path:
        # Not save_file: its files are readable by their owner alone.
        tmp_path.write_bytes(save(tensors, metadata={"format": "pt"}))


def resolve_path(path: str | Path) -> Path:
    """Return the weights file that `path` refers to: the file itself, or the one in a run's output folder.

    Raises:
        UserError: no such file, or no weights in the folder.
    """
    path = Path(path)
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
        has_weights = is_folder and (path / WEIGHTS).is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be opened
        raise UserError(f"checkpoint={path} cannot be read ({first_line(error)})") from error
    if is_folder:
        if not has_weights:
            raise UserError(f"checkpoint={path} is a folder without {WEIGHTS}: name a run's output folder or a file")
        return path / WEIGHTS
    if not is_file:
        reason = "is not a regular file" if exists else "does not exist"
        raise UserError(f"checkpoint={path} {reason}: name a run's output folder or a {', '.join(SUFFIXES)} file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"checkpoint={path} is not a {', '.join(SUFFIXES)} file")
    return path


def read_config(path: str | Path) -> RunConfig | None:
    """Read the config.json beside the weights at `path`; None if there is none of timm's or nsaug's.

    Raises:
        UserError: no weights at `path`, or an invalid config.json.
    """
    return read_run_config(resolve_path(path).with_name(CONFIG))


def read_metadata(folder: str | Path) -> RunMetadata:
    """Read nsaug's metadata from the config.json in a run's folder; empty if there is none.

    Raises:
        UserError: invalid config.json.
    """
    return (read_run_config(Path(folder) / CONFIG) or {}).get("nsaug", {})


def run_name(file: Path, metadata: RunMetadata) -> str:
    """Return the display name of a weights file: that of its run, else the file's or the folder's."""
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
    except Exception as error:  # a damaged file can raise almost any error in torch's unpickler
        raise UserError(f"checkpoint={path} cannot be read: {first_line(error)}") from error

    wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = content if isinstance(content, dict) else {}
    state = next((state[key] for key in wrappers if isinstance(state.get(key), dict)), state)
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f"checkpoint={path} holds no state dict: expected tensors by name, or under model/state_dict")
    if any(key.startswith("vit.") for key in state):  # a Lightning checkpoint, which also holds the method's state
        state = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    return clean_state_dict(state)
