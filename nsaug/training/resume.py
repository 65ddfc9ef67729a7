"""Resume a run: find its last good checkpoint, and compare its configuration with the command's."""

import csv
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict

from nsaug.data.splits import split_changes
from nsaug.utils.errors import UserError, as_setting, first_line
from nsaug.utils.files import is_file
from nsaug.utils.types import NonNegativeInt, first_problem, flatten

log = logging.getLogger(__name__)

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"

RESUME_IGNORED = ("trainer.enable_progress_bar", "data.num_workers")
"""Settings that do not affect results."""
LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
RESUME_MAY_CHANGE = (*RESUME_IGNORED, *LENGTH, "data.root", "data.classes", "data.download")
"""Also those of the length of a run, and where its images are: their ids and classes are compared."""


@with_config(ConfigDict(extra="allow", arbitrary_types_allowed=True))
class Checkpoint(TypedDict):
    """The entries of Lightning's checkpoint that a run resumes from."""

    epoch: NonNegativeInt
    global_step: NonNegativeInt
    state_dict: dict[str, Tensor]
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    loops: dict[str, Any]
    callbacks: dict[str, Any]


_CHECKPOINT = TypeAdapter(Checkpoint)


def find_resume_checkpoint(resume: bool | str | None, folder: Path) -> tuple[Path, Path | None]:
    """The folder to write to and the checkpoint to load.

    Args:
        resume: true resumes the run in `folder`, or starts it if there is none, so that one command does both; a path
            names another run's folder, or a checkpoint in it.
        folder: the output folder of this command.

    Returns:
        `folder` and None for a new run; else the folder of the resumed run and its checkpoint.

    Raises:
        UserError: the path has no checkpoint, only damaged ones, or one of another program.
    """
    if not resume:
        return folder, None
    path = folder if resume is True else Path(resume).expanduser()
    try:
        checkpoint = path if path.is_file() else find_last_checkpoint(path)
    except OSError as error:
        raise UserError(f"resume={path} cannot be read ({first_line(error)})") from error
    if checkpoint is None:
        if resume is not True:
            runs = sorted(path.glob(f"*/{LAST}"))  # of a sweep
            advice = f"such as {as_setting('resume', runs[0].parent)}" if runs else ""
            raise UserError(f"resume={path} has no {LAST}: name the output folder of a run{advice and f', {advice}'}")
        log.info("%s has no checkpoint to resume: starting a new run", folder)
        return folder, None
    if checkpoint == path and not is_valid(path):
        raise UserError(
            f"resume={path} is damaged: type {as_setting('resume', path.parent)}, which falls back to {PREVIOUS}"
        )
    read_checkpoint(checkpoint, mmap=True)
    return checkpoint.parent, checkpoint


def find_last_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint of a run, or None if it has none at all.

    Raises:
        UserError: all checkpoints are damaged.
    """
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        if is_file(folder / name):
            if is_valid(folder / name):
                if damaged:  # move it away, or the next save would copy it over previous.ckpt
                    os.replace(damaged[0], damaged[0].with_name(DAMAGED))
                    log.warning("%s is damaged: resuming from %s", damaged[0], name)
                return folder / name
            damaged.append(folder / name)
    if damaged:
        names = " and ".join(path.name for path in damaged)
        verb = "is" if len(damaged) == 1 else "are"
        raise UserError(f"resume={folder}: {names} {verb} damaged: start the run again, without resume")
    return None


def is_valid(path: Path) -> bool:
    """Whether the checksums of all parts of a checkpoint hold."""
    try:
        with zipfile.ZipFile(path) as file:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in file.infolist())  # as torch writes them
            return stored and file.testzip() is None
    except Exception:  # a damaged archive can raise almost any error
        return False


def read_checkpoint(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint of train.py without executing anything in it.

    Args:
        path: of last.ckpt or a copy of it.
        map_location: see `torch.load`.
        mmap: read tensors only when they are used.

    Raises:
        UserError: it cannot be read, or is not a checkpoint of train.py.
    """
    try:
        content = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
        return _CHECKPOINT.validate_python(content, strict=True)
    except ValidationError as error:
        reason = first_problem(error)
    except pickle.UnpicklingError:
        reason = "it holds pickled objects, which are not loaded"
    except Exception as error:  # a damaged file can raise almost any error in torch's unpickler
        reason = first_line(error)
    raise UserError(f"{path} is not a checkpoint of train.py ({reason}): name the output folder of another run")


def check_checkpoint(path: Path, model: torch.nn.Module) -> None:
    """Raise UserError if a checkpoint is not one of this model.

    Args:
        path: of the checkpoint.
        model: the LightningModule that is resumed.
    """
    saved = {key: tuple(tensor.shape) for key, tensor in read_checkpoint(path, mmap=True)["state_dict"].items()}
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for key in {**expected, **saved}:
        if saved.get(key) != expected.get(key):
            raise UserError(
                f"{path} is not a checkpoint of this model ({key!a:.100} has shape {saved.get(key)}, not"
                f" {expected.get(key)}): type the command that started the run"
            )


def read_metrics(path: Path, before_step: int) -> list[dict[str, str]]:
    """Read the rows of a metrics.csv that were written before a step.

    Raises:
        UserError: it is not a table with a number in every row of the column `step`.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more or fewer cells than columns")
        return [row for row in rows if int(row["step"]) < before_step]
    except KeyError:
        reason = "it has no column step"
    except (OSError, ValueError, csv.Error) as error:
        reason = first_line(error)
    raise UserError(f"{path} is damaged ({reason}): remove it; resuming then starts a new one")


def check_same_config(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError if a resumed run would continue with other settings.

    Args:
        before: metadata of the run (`run_metadata`), as saved.
        now: those of this command.
        folder: of the run.
    """
    if "settings" not in before:
        raise UserError(f"resume={folder}: config.json there records no settings: name the output folder of a run")
    if "splits" not in before:
        raise UserError(f"resume={folder}: that run is of an earlier version of nsaug: start a new run")
    compared = ("settings", "seed", "class_names")
    old, new = ({key: run[key] for key in compared if key in run} for run in (before, now))
    for key, theirs, ours in diff_configs(old, new, RESUME_MAY_CHANGE):
        raise UserError(
            f"resume={folder}: that run has {key.removeprefix('settings.')}={theirs}, this command {ours}: type"
            f" {as_setting('resume', folder)} without other settings, or start a new run"
        )
    for key, theirs, ours in diff_configs(before["settings"], now["settings"]):
        if key in LENGTH:
            log.info("%s=%s, was %s: the learning rate is now that of a run of the new length", key, ours, theirs)
    if changes := split_changes(before["splits"], now["splits"]):
        raise UserError(
            f"resume={folder}: the images have changed since that run started ({changes}): restore them, or start a new"
            " run"
        )


def check_duration(checkpoint: Path, durations: Mapping[str, int], folder: Path) -> None:
    """Raise UserError if a resumed run would end before its checkpoint.

    Args:
        checkpoint: of the run.
        durations: `max_epochs` and `max_steps`, as far as they limit the run.
        folder: of the run.
    """
    content = read_checkpoint(checkpoint, mmap=True)
    for key, done in (("max_epochs", content["epoch"] + 1), ("max_steps", content["global_step"])):
        if durations.get(key, done) < done:
            raise UserError(
                f"resume={folder}: that run has begun {key.removeprefix('max_')[:-1]} {done}, trainer.{key} ends it"
                f" after {durations[key]}: type a larger number"
            )


def diff_configs(
    before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...] = RESUME_IGNORED
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every setting that differs, except those that are ignored."""
    old, new = flatten(before), flatten(now)
    for key in {**new, **old}:
        if old.get(key) != new.get(key) and not key.endswith(ignored):
            yield key, old.get(key), new.get(key)
