"""`resume=FOLDER` alone: the settings of the command that started a run, read from its config.json.

The folder may come from a stranger. Its settings are parsed by Hydra's grammar, and only plain values and names of
choices are accepted: no `_target_`, no interpolation, no search path.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from nsaug.cli.command_line import parse
from nsaug.utils.errors import UserError, as_override, as_setting
from nsaug.utils.files import is_file

DROPPED = ("resume", "data.download")
"""The images were downloaded when the run started."""
KEY = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z0-9]\w*)*")
CHOICE = re.compile(r"[\w-]+")


def insert_recorded_settings(arguments: Sequence[str], values: Collection[str]) -> list[str]:
    """Put the settings of the run that `resume=FOLDER` names before those that were typed, which take precedence.

    The output folder of the command becomes that of the run, unless hydra.run.dir is typed.

    Args:
        arguments: as typed, options first.
        values: settings at the top level; every other key without a dot is a group.

    Raises:
        UserError: config.json there is invalid, a setting in it may run code, or the command is a sweep.
    """
    overrides, is_sweep = parse(arguments)
    keys = [override.key_or_group for override in overrides]
    if "resume" not in keys:
        return list(arguments)
    resume = overrides[keys.index("resume")].value()
    if isinstance(resume, bool) or not resume:
        return list(arguments)
    if is_sweep and any(override.is_sweep_override() for override in overrides):
        raise UserError(
            "resume=FOLDER resumes one run: leave out what varies; to resume a sweep, type its command with"
            " hydra.sweep.dir=FOLDER resume=true"
        )
    if not isinstance(resume, str):
        return list(arguments)
    from nsaug.models.run_config import CONFIG
    from nsaug.models.weights import read_metadata

    path = Path(resume).expanduser()
    folder = path.parent if is_file(path) else path
    command = read_metadata(folder).get("command")
    if command is None:
        return list(arguments)
    settings = []
    for setting in command:
        override = _parse(setting)
        if override is not None and override.key_or_group in (*keys, *DROPPED):
            continue
        if override is None or not _is_plain(override, values):
            raise UserError(
                f"{folder / CONFIG}: nsaug.command: {setting!a:.200} is not read from a file, because it might run"
                f" code: type it beside {as_setting('resume', resume)}"
            )
        settings.append(setting)
    if not is_sweep and "hydra.run.dir" not in keys:
        settings.append(as_override("hydra.run.dir", folder))
    first = len(arguments) - len(overrides)
    return [*arguments[:first], *settings, *arguments[first:]]


def _parse(setting: str) -> Override | None:
    """A setting as Hydra reads it; None if it cannot be read."""
    try:
        (override,) = OverridesParser.create().parse_overrides([setting])
    except (HydraException, RecursionError):
        return None
    return override


def _is_plain(override: Override, values: Collection[str]) -> bool:
    """Whether a setting is a plain value or the name of a choice, so that it can neither name code nor read a file."""
    key, value = override.key_or_group, override.value()
    if override.is_sweep_override() or override.package is not None or not KEY.fullmatch(key) or _has_code(value):
        return False
    if key.startswith("hydra"):
        return False
    is_choice = "." not in key and key not in values and not override.is_delete()
    return not is_choice or value is None or (isinstance(value, str) and CHOICE.fullmatch(value) is not None)


def _has_code(value: Any) -> bool:
    """Whether a value has an interpolation, or a key of Hydra such as `_target_`."""
    if isinstance(value, dict):
        return any(str(key).startswith("_") or _has_code(str(key)) or _has_code(item) for key, item in value.items())
    return any(map(_has_code, value)) if isinstance(value, list) else "${" in str(value)
