"""Folder names of a sweep's runs: number of the run, settings that vary; characters that need no quotes."""

import json
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from nsaug.cli.command_line import config_dir, parse
from nsaug.utils.files import is_dir

MAX_LENGTH = 150
"""Of the name of a folder, in characters; file systems allow 255 bytes."""
MAX_VALUE_LENGTH = 40


def to_filename(value: Any, max_length: int) -> str:
    """Replace characters that need quotes by dashes; keep the last `max_length` characters."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[-max_length:].strip("-.")


OmegaConf.register_new_resolver("nsaug.filename", to_filename, replace=True)


def name_sweep_folders(arguments: Sequence[str]) -> list[str]:
    """Hydra's setting for names of a sweep's folders such as `3_eps-0.01_seed-1`; none if the user sets them."""
    overrides, is_sweep = parse(arguments)
    if not is_sweep or any(override.key_or_group == "hydra.sweep.subdir" for override in overrides):
        return []
    varying = [override for override in overrides if override.is_sweep_override()]
    keys = [override.key_or_group.replace("/", ".") for override in varying]
    last_parts = [key.rpartition(".")[2] for key in keys]
    parts = [
        f"{last if last_parts.count(last) == 1 else key}-{_value(override)}"
        for key, last, override in zip(keys, last_parts, varying, strict=True)
    ]
    name = f"_${{nsaug.filename:{'_'.join(parts)},{MAX_LENGTH}}}" if parts else ""
    return [f'hydra.sweep.subdir="${{hydra:job.num}}{name}"']


def _value(override: Override) -> str:
    """Interpolation of the value of a setting in a run."""
    key = override.key_or_group
    source = f"hydra:runtime.choices.{key}" if is_dir(config_dir() / key) else key
    return f"${{nsaug.filename:${{{source}}},{MAX_VALUE_LENGTH}}}"
