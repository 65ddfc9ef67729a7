"""Checkpoints: written whole or not at all, read without trusting pickles, and handed back to plain timm.

A run's folder holds `last.ckpt` (Lightning's, to resume from), and beside it `model.safetensors` and `config.json`,
which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads. What nsaug itself needs to know of the run
(method, seed, data) stands in config.json under the key `nsaug`, which timm ignores.
"""

import json
import logging
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models import clean_state_dict
from timm.models._hub import save_config_for_hf
from torch import Tensor

from nsaug.settings import NsaugError, first_line

log = logging.getLogger(__name__)

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there replaces `path` at the end, or never.

    The data are on the disk before the name points to them (fsync, then os.replace in the same folder).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all; of last.ckpt the one before is kept, too."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            with written_whole(path) as draft:
                torch.save(checkpoint, draft)
                if path.name == LAST and path.exists():  # at every moment there is a last.ckpt
                    with written_whole(path.with_name(PREVIOUS)) as copy:
                        shutil.copyfile(path, copy)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            kept = (
                f"the one before is whole: make room and type resume={path.parent}" if path.exists() else "none is kept"
            )
            raise NsaugError(f"{path} cannot be written ({first_line(error)}); {kept}") from error


def check_room(folder: Path, model: torch.nn.Module) -> None:
    """Finds out before the first step that a run could not keep what it computes.

    Raises:
        NsaugError: the folder cannot be written, or has less room than two checkpoints take.
    """
    try:
        with written_whole(folder / ".room") as draft:
            draft.write_bytes(b"room")
        (folder / ".room").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise NsaugError(
            f"{folder} cannot be written ({first_line(error)}): name another, hydra.run.dir=PATH"
        ) from error
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    wanted = 2 * 4 * weights  # of two checkpoints: weights, their average, and the optimiser's two moments
    if free < wanted:
        raise NsaugError(
            f"{folder} has {free / 1e9:.1f} GB of room, and checkpoints of this model take {wanted / 1e9:.1f}:"
            " make some, or name another place, hydra.run.dir=PATH"
        )


def resumable(folder: Path) -> Path | None:
    """The newest checkpoint in a run's folder that is whole; None where there is none at all.

    Raises:
        NsaugError: there are some, and all are damaged.
    """
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            if is_whole(folder / name):
                if damaged:  # out of the way, or the next checkpoint's predecessor would be a damaged one
                    os.replace(damaged[0], damaged[0].with_name(DAMAGED))
                    log.warning("%s is damaged: the run goes on from %s, the one before", damaged[0], name)
                return folder / name
            damaged.append(folder / name)
    if damaged:
        raise NsaugError(f"resume={folder}: {' and '.join(each.name for each in damaged)} are damaged: start anew")
    return None


def is_whole(path: Path) -> bool:
    """Whether every part of a checkpoint is what was written: its checksums hold."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def describe(folder: str | Path, model: Any, model_args: dict[str, Any], record: dict[str, Any]) -> None:
    """Writes `config.json` into `folder`: what timm and nsaug have to know of the weights beside it.

    Args:
        folder: a run's own.
        model: the timm model, its `pretrained_cfg` describing the images it takes.
        model_args: what `timm.create_model` was given beyond the name and the class count.
        record: what nsaug wants to know of the run, as plain JSON values.
    """
    with written_whole(Path(folder) / CONFIG) as draft:
        save_config_for_hf(model, draft, model_config={"nsaug": record}, model_args=model_args)


def export(folder: str | Path, model: Any) -> None:
    """Writes `model.safetensors` into `folder`; with `config.json` beside it, plain timm loads the folder."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with written_whole(Path(folder) / WEIGHTS) as draft:
        # Not save_file: what it writes is readable by its owner alone.
        draft.write_bytes(save(tensors, metadata={"format": "pt"}))


def locate(path: str | Path) -> Path:
    """The weights file that a user means by `path`: the file itself, or the one that a run's folder holds.

    Raises:
        NsaugError: nothing there, or nothing that holds weights.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise NsaugError(f"checkpoint={path} is a folder without {WEIGHTS}: name a run's output folder or a file")
        return path / WEIGHTS
    if not path.is_file():
        raise NsaugError(
            f"checkpoint={path} does not exist: name a run's output folder or a {', '.join(SUFFIXES)} file"
        )
    if path.suffix not in SUFFIXES:
        raise NsaugError(f"checkpoint={path} is no {', '.join(SUFFIXES)} file")
    return path


def read_config(path: str | Path) -> dict[str, Any] | None:
    """config.json beside the weights at `path`, or None where there is none."""
    config = locate(path).with_name(CONFIG)
    return json.loads(config.read_text()) if config.is_file() else None


def read_record(folder: str | Path) -> dict[str, Any]:
    """What the run in a folder left of itself in config.json; empty where it left nothing."""
    config = Path(folder) / CONFIG
    return json.loads(config.read_text()).get("nsaug", {}) if config.is_file() else {}


def name_of(path: str | Path) -> str:
    """What tables call the weights at `path`: the name of the run that left them, else the name of the file."""
    record = (read_config(path) or {}).get("nsaug", {})
    file = locate(path)
    return record.get("name") or (file.parent.name if file.name == WEIGHTS else file.stem)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth, .pt, .bin or Lightning .ckpt file, on the CPU, with timm's own keys.

    Files that wrap it (`model`, `state_dict`, their EMA first) are unwrapped; prefixes that training adds are
    dropped. Pickled objects are never executed (`weights_only`).

    Raises:
        NsaugError: the file is missing, damaged, or holds something other than tensors.
    """
    path = locate(path)
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NsaugError(
            f"checkpoint={path} is damaged or holds pickled objects, which are not loaded: save its state dict alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise NsaugError(f"checkpoint={path} cannot be read: {first_line(error)}") from error

    wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = content if isinstance(content, dict) else {}
    state = next((state[key] for key in wrappers if isinstance(state.get(key), dict)), state)
    if any(key.startswith("vit.") for key in state):  # a Finetuner: its method and metrics stay behind
        state = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    state = clean_state_dict(state)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise NsaugError(f"checkpoint={path} holds no state dict: expected tensors by name, or under model/state_dict")
    return state
