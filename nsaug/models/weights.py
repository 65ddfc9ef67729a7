"""Read and write model weights: no pickled objects, no Lightning. Formats are the subject of `checkpoint_formats`.

A run's output folder holds `model.safetensors` and `config.json`, which plain timm loads with
`timm.create_model("local-dir:FOLDER", pretrained=True)`. nsaug's own metadata (method, seed, data) is in config.json
under the key `nsaug`, which timm ignores.
"""

import argparse
import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from timm.models._hub import save_config_for_hf
from torch import Tensor

from nsaug.models.checkpoint_formats import flatten_tensors
from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.run_config import (
    CONFIG,
    PREPROCESSOR,
    Preprocessing,
    RunConfig,
    RunMetadata,
    TransformersConfig,
    check_metadata,
    read_preprocessor_config,
    read_run_config,
    read_shard_names,
    read_transformers_config,
)
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write, is_file

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
SHARDS = ".index.json"
FOLDER_FILES = (WEIGHTS, WEIGHTS + SHARDS, "pytorch_model.bin", "pytorch_model.bin" + SHARDS)
"""Weights in a folder, the first that exists: of a run, of timm and of transformers."""


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
    if vit.norm_eps is not None:
        metadata["norm_eps"] = vit.norm_eps
    check_metadata(metadata, file)
    with atomic_write(file) as tmp_path:
        save_config_for_hf(vit.model, tmp_path, model_config={"nsaug": metadata}, model_args=vit.model_args)


def save_weights(folder: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write the state dict of a timm model to `model.safetensors`."""
    with atomic_write(Path(folder) / WEIGHTS) as tmp_path:
        tmp_path.write_bytes(_to_bytes(state))  # not save_file: its files are readable by their owner alone


def has_weights(folder: str | Path, state: Mapping[str, Tensor]) -> bool:
    """Whether `model.safetensors` in a folder holds the state dict of a timm model."""
    file = Path(folder) / WEIGHTS
    return is_file(file) and file.read_bytes() == _to_bytes(state)


def _to_bytes(state: Mapping[str, Tensor]) -> bytes:
    # Copied, because safetensors refuses tensors that share memory, as in CoaT.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    return save(tensors, metadata={"format": "pt"})


def find_weights(folder: Path) -> Path | None:
    """Return the weights file in the folder of a run or of transformers' `save_pretrained`; None if there is none."""
    return next((folder / name for name in FOLDER_FILES if is_file(folder / name)), None)


def resolve_path(path: str | Path) -> Path:
    """Return the weights file that `path` refers to: the file itself, or the one in a folder.

    Raises:
        UserError: no such file, or no weights in the folder.
    """
    path = Path(path)
    try:
        is_folder, is_regular, exists = path.is_dir(), path.is_file(), path.exists()
        in_folder = find_weights(path) if is_folder else None
        has_runs = is_folder and not in_folder and any(find_weights(run) for run in path.iterdir() if run.is_dir())
    except OSError as error:  # a name that is too long, or a folder that may not be opened
        raise UserError(f"checkpoint={path} cannot be read ({first_line(error)})") from error
    if is_folder:
        if in_folder is None:
            advice = f"its runs are checkpoint='{path}/*'" if has_runs else "name a run's output folder or a file"
            raise UserError(f"checkpoint={path} is a folder without {WEIGHTS}: {advice}")
        return in_folder
    if not is_regular:
        reason = "is not a regular file" if exists else "does not exist"
        raise UserError(f"checkpoint={path} {reason}: name a run's output folder or a {', '.join(SUFFIXES)} file")
    if path.suffix not in SUFFIXES and path.name not in FOLDER_FILES:
        raise UserError(f"checkpoint={path} is not a {', '.join(SUFFIXES)} file")
    return path


def read_config(path: str | Path) -> RunConfig | None:
    """Read the config.json beside the weights at `path`; None if there is none of timm's or nsaug's.

    Raises:
        UserError: no weights at `path`, or an invalid config.json.
    """
    return read_run_config(resolve_path(path).with_name(CONFIG))


def find_transformers_config(path: str | Path) -> TransformersConfig | None:
    """Read the config.json of transformers beside the weights at `path`; None if there is none.

    Raises:
        UserError: no weights at `path`, or an invalid config.json.
    """
    return read_transformers_config(resolve_path(path).with_name(CONFIG))


def read_preprocessing(path: str | Path) -> Preprocessing:
    """Read the preprocessing that transformers' preprocessor_config.json beside the weights states; empty without any.

    Raises:
        UserError: no weights at `path`, or an invalid preprocessor_config.json.
    """
    return read_preprocessor_config(resolve_path(path).with_name(PREPROCESSOR))


def read_metadata(folder: str | Path) -> RunMetadata:
    """Read nsaug's metadata from the config.json in a run's folder; empty if there is none.

    Raises:
        UserError: invalid config.json.
    """
    return (read_run_config(Path(folder) / CONFIG) or {}).get("nsaug", {})


def run_name(file: Path, metadata: RunMetadata) -> str:
    """Return the display name of a weights file: that of its run, else the file's or the folder's."""
    return metadata.get("name") or (file.parent.name if file.name in FOLDER_FILES else file.stem)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors in a weights file (see SUFFIXES), on the CPU, by dotted path, such as `state_dict.head.bias`.

    Pickled objects are not executed (`weights_only`).

    Raises:
        UserError: the file is missing, damaged, or holds no tensors.
    """
    path = resolve_path(path)
    tensors: dict[str, Tensor] = {}
    for file in _shards(path) if path.name.endswith(SHARDS) else [path]:
        tensors |= flatten_tensors(_load(file))
    if not tensors:
        raise UserError(f"checkpoint={path} holds no state dict: expected tensors by name, or under model/state_dict")
    return tensors


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        allowed = torch.serialization.safe_globals([argparse.Namespace])  # the options in timm's model_best.pth.tar
        with allowed, warnings.catch_warnings(action="ignore"):  # about the format; what is wrong follows as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint={path} is damaged or holds pickled objects, which are not loaded: save only the state dict"
        ) from error
    except Exception as error:  # a damaged file can raise almost any error in torch's unpickler
        if "TorchScript" in str(error):
            raise UserError(
                f"checkpoint={path} is a TorchScript program, such as OpenAI's CLIP: save its"
                " state_dict() with torch.save"
            ) from error
        raise UserError(f"checkpoint={path} cannot be read: {first_line(error)}") from error


def _shards(index: Path) -> list[Path]:
    """The files that transformers' index of a large model names; they are beside it."""
    shards = [index.with_name(name) for name in read_shard_names(index)]
    for shard in shards:
        if not is_file(shard):
            raise UserError(f"checkpoint={index}: {shard.name} is missing beside it")
    return shards
