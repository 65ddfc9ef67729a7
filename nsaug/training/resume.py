"""Resume a run: find its last good checkpoint, and compare its configuration with the command's."""

import logging
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsaug.utils.errors import UserError
from nsaug.utils.types import flatten

log = logging.getLogger(__name__)

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"

RESUME_IGNORED = ("trainer.enable_progress_bar", "data.num_workers")
"""Settings that do not affect results and may change on resume."""


def find_resume_checkpoint(resume: bool | str | None, folder: Path) -> tuple[Path, Path | None]:
    """The folder to write to and the checkpoint to load.

    Args:
        resume: true resumes the run in `folder`, or starts it if there is none, so that one command does both; a path
            names another run's folder, or a checkpoint in it.
        folder: the output folder of this command.

    Returns:
        `folder` and None for a new run; else the folder of the resumed run and its checkpoint.

    Raises:
        UserError: the path has no checkpoint, or only damaged ones.
    """
    if not resume:
        return folder, None
    if resume is True:
        checkpoint = find_last_checkpoint(folder)
        if checkpoint is None:
            log.info("%s has no checkpoint to resume: starting a new run", folder)
        return folder, checkpoint
    path = Path(resume).expanduser()
    if path.is_file():
        if not is_valid(path):
            raise UserError(f"resume={path} is damaged: type resume={path.parent}, which falls back to {PREVIOUS}")
        return path.parent, path
    checkpoint = find_last_checkpoint(path) if path.is_dir() else None
    if checkpoint is None:
        raise UserError(f"resume={path} has no {LAST}: name the output folder of a run")
    return path, checkpoint


def find_last_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint of a run, or None if it has none at all.

    Raises:
        UserError: all checkpoints are damaged.
    """
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            if is_valid(folder / name):
                if damaged:  # move it away, or the next save would copy it over previous.ckpt
                    os.replace(damaged[0], damaged[0].with_name(DAMAGED))
                    log.warning("%s is damaged: resuming from %s", damaged[0], name)
                return folder / name
            damaged.append(folder / name)
    if damaged:
        names = " and ".join(path.name for path in damaged)
        raise UserError(f"resume={folder}: {names} are damaged: start the run again, without resume")
    return None


def is_valid(path: Path) -> bool:
    """Whether the checksums of all parts of a checkpoint hold."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def check_same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise UserError if a resumed run would continue with other settings.

    Args:
        before, now: metadata of the run (`run_metadata`), as saved and of this command.
        folder: of the run.
    """
    compared = ("settings", "seed", "class_names")
    old, new = ({key: run[key] for key in compared if key in run} for run in (before, now))
    for key, theirs, ours in diff_configs(old, new):
        raise UserError(
            f"resume={folder}: that run has {key.removeprefix('settings.')}={theirs}, this command {ours}: type the"
            " command that started it"
        )


def diff_configs(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every setting that differs, except those in `RESUME_IGNORED`."""
    old, new = flatten(before), flatten(now)
    for key in {**new, **old}:
        if old.get(key) != new.get(key) and not key.endswith(RESUME_IGNORED):
            yield key, old.get(key), new.get(key)
