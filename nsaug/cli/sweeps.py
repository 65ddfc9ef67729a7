"""Names of a sweep's runs and of their folders: what varies, in characters that need no quotes."""

import json
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

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


def name_sweep_runs(arguments: Sequence[str]) -> list[str]:
    """Hydra's settings for the names of a sweep's runs; none for a single run.

    One names the folders, such as `3_eps-0.01_seed-1`, unless the user does; the other one lists the settings that all
    runs share, for `varying_settings`.
    """
    overrides, is_sweep = parse(arguments)
    if not is_sweep:
        return []
    own = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    shared = [override.key_or_group for override in own if not override.is_sweep_override()]
    settings = [f"hydra.job.config.override_dirname.exclude_keys={json.dumps(shared)}"]
    if not any(override.key_or_group == "hydra.sweep.subdir" for override in overrides):
        settings.append(_folder_setting([override for override in own if override.is_sweep_override()]))
    return settings


def _folder_setting(varying: list[Override]) -> str:
    keys = [override.key_or_group.replace("/", ".") for override in varying]
    last_parts = [key.rpartition(".")[2] for key in keys]
    parts = [
        f"{last if last_parts.count(last) == 1 else key}-{_value(override)}"
        for key, last, override in zip(keys, last_parts, varying, strict=True)
    ]
    name = f"_${{nsaug.filename:{'_'.join(parts)},{MAX_LENGTH}}}" if parts else ""
    return f'hydra.sweep.subdir="${{hydra:job.num}}{name}"'


def varying_settings(cfg: DictConfig) -> dict[str, Any]:
    """Settings by which a run is named, besides method and seed.

    Of a run in a sweep those that vary; of a single run those of the method, the noise and the optimizer that were
    typed, so that runs that a W&B agent starts have different names.
    """
    hydra = HydraConfig.get()
    typed, _ = parse(hydra.overrides.task)
    keys = [override.key_or_group for override in typed if not override.is_delete()]
    if hydra.mode == RunMode.MULTIRUN:
        shared = hydra.job.config.override_dirname.exclude_keys
        keys = [key for key in keys if key not in (*shared, "method", "name", "seed")]
    else:
        keys = [key for key in keys if key.startswith(("method.", "nullspace.", "optim."))]
    values = {key: hydra.runtime.choices.get(key) or OmegaConf.select(cfg, key) for key in keys}
    return {
        key: value if isinstance(value, float) else to_filename(value, MAX_VALUE_LENGTH)
        for key, value in values.items()
    }


def _value(override: Override) -> str:
    """Interpolation of the value of a setting in a run."""
    key = override.key_or_group
    source = f"hydra:runtime.choices.{key}" if is_dir(config_dir() / key) else key
    return f"${{nsaug.filename:${{{source}}},{MAX_VALUE_LENGTH}}}"
