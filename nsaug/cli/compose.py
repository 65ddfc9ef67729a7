"""Compose a configuration, without the global state of Hydra that a program around nsaug may use."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import numpy as np
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from nsaug.cli.command_line import config_dir
from nsaug.utils.errors import UserError, quoted

VERSION_BASE = "1.3"
"""The version of Hydra whose defaults apply."""
KEYWORDS = ("true", "false", "null", "inf", "nan")
"""Words that Hydra does not read as text."""


class OpenNodesLoader(ConfigLoaderImpl):
    """Accepts `trainer.limit_val_batches=1` without Hydra's `+`, although the YAML does not list it.

    Hydra closes all nodes before it applies the command line. A node with a `_target_` need not be closed:
    `validate_config` checks its keys against the target's signature. Nor need `data=checkpoint`, whose keys are checked
    against the signature of the data that the checkpoint was trained on.
    """

    def _compose_config_from_defaults_list(self, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = super()._compose_config_from_defaults_list(*args, **kwargs)
        for key, node in cfg.items_ex(resolve=False):
            if not isinstance(node, DictConfig) or node._is_none():
                continue
            # list: `in` would be false for a _target_ that is still missing (???), as in custom.yaml
            if "_target_" in list(node) or (key == "data" and not node):
                OmegaConf.set_struct(node, False)
        return cfg


@contextmanager
def open_nodes() -> Iterator[None]:
    """Make `hydra.main` use `OpenNodesLoader` inside this context."""
    hydra._internal.hydra.ConfigLoaderImpl = OpenNodesLoader  # type: ignore[misc]
    try:
        yield
    finally:
        hydra._internal.hydra.ConfigLoaderImpl = ConfigLoaderImpl  # type: ignore[misc]


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command with these settings, as `hydra.compose` makes it.

    Needs no initialization, and leaves an initialized Hydra as it is.

    Args:
        config_name: the primary configuration, such as `train`.
        overrides: settings as they are typed, such as `nullspace.eps=0.05`.

    Raises:
        HydraException, OmegaConfBaseException: a setting that cannot be read or does not exist; see
            `errors.format_error`.
    """
    with _version_base():
        loader = OpenNodesLoader(create_config_search_path(str(config_dir())))
        # Hydra would take the name of the job from its global state.
        cfg = loader.load_configuration(config_name, [*overrides, "hydra.job.name=nsaug"], RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@contextmanager
def _version_base() -> Iterator[None]:
    base = version.VersionBase.instance()
    before = base.getbase()
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        base.version_base = before


def to_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings in Python as they are typed: `{"nullspace.eps": 0.05}` becomes `["nullspace.eps=0.05"]`.

    Raises:
        UserError: a name is not that of a setting, or a value is neither text, a path, a number, a boolean, None, nor a
            list or dict of these.
    """
    return [f"{_check_name(name)}={_to_text(value, name)}" for name, value in settings.items()]


def _check_name(name: Any) -> str:
    if isinstance(name, str) and re.fullmatch(r"\+?[a-zA-Z_][\w/.]*", name):
        return name
    raise UserError(f'settings: {name!r} is not the name of a setting, such as "nullspace.eps"')


def _to_text(value: Any, name: str) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool | np.bool_):
        return json.dumps(None if value is None else bool(value))
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[a-zA-Z]\w*", value) and value.lower() not in KEYWORDS
        return value if is_plain else quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_to_text(item, name) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_check_name(key)}:{_to_text(item, name)}' for key, item in value.items())}}}"
    kind = type(value).__name__
    raise UserError(f"settings: {name} is a {kind}: give text, a number, True, False, None, or a list or dict of these")
