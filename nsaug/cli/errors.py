"""One line for every exception of a command: the setting by its path, what is wrong, what to type."""

import functools
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsaug.cli.command_line import config_dir, parse
from nsaug.utils.errors import UserError, as_setting, first_line, unknown_name, with_type
from nsaug.utils.files import is_dir
from nsaug.utils.text import printable

log = logging.getLogger(__name__)

MAX_LENGTH = 1000
"""Longer lines are cut in the middle: a value that was typed may have any length."""
NOT_A_CHOICE = re.compile(r"Config group override must be a string or a list\. Got (\w+)")
"""Hydra's words for `method=null` and `method=1`."""


def print_error(error: Exception, config_name: str = "", arguments: Sequence[str] | None = None) -> None:
    """Print an exception in one line on stderr; see `format_error`."""
    line = printable(format_error(error, config_name, arguments))
    if len(line) > MAX_LENGTH:
        line = f"{line[: MAX_LENGTH // 2]} ... {line[-MAX_LENGTH // 2 :]}"
    print(f"error: {line}", file=sys.stderr)


def format_error(error: Exception, config_name: str = "", arguments: Sequence[str] | None = None) -> str:
    """One line for an exception, whatever raised it.

    Args:
        error: of nsaug, of Hydra or OmegaConf, or of a library that a setting was handed to. Anything else is a bug of
            nsaug: the line says so, and the traceback is logged at debug level.
        config_name: the primary configuration of the command, such as `train`.
        arguments: as they were typed, while the configuration is composed, because Hydra's own errors do not always
            name the setting; None later, when the command has a log file.
    """
    if isinstance(error, UserError):
        return str(error)
    if "are you indeed on a slurm cluster?" in str(error):  # submitit's words
        return "hydra/launcher=slurm: srun is not installed, so this machine cannot submit Slurm jobs"
    if str(error) == "No trials are completed yet.":  # Optuna's words
        return "the search has no result: all of its runs failed, or had no validation images"
    if line := _composition_error(error, config_name, arguments or ()):
        return line
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _hydra_error(error, config_name)
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", str(error)):
        return (
            f"memory ran out ({first_line(error)}): lower data.batch_size in train.py, batch_size in evaluate.py, or"
            " choose a smaller model"
        )
    if isinstance(error, OSError):
        return first_line(error)
    if type(error).__module__.startswith("lightning."):  # MisconfigurationException
        return f"trainer: {first_line(error)}"
    log.debug("internal error", exc_info=error)
    both = "the log file of this run and HYDRA_FULL_ERROR=1 show"
    source = both if arguments is None else "HYDRA_FULL_ERROR=1 shows"
    report = "please report it, with what python -m nsaug --version prints"
    return f"internal error: {with_type(error)}; {source} the traceback: {report}"


def _composition_error(error: Exception, config_name: str, arguments: Sequence[str]) -> str | None:
    """Name the argument that cannot be composed; None if it is not known which one."""
    if isinstance(error, OverrideParseException):
        name, _, value = str(error.override).partition("=")
        hint = f"; to quote special characters, type {as_setting(name, value)}" if value else ""
        return f"{error.override}: cannot be read as name=value{hint}"
    overrides, is_sweep = parse(arguments)
    for override in overrides:
        if override.is_sweep_override() and not is_sweep:
            name, _, values = str(override.input_line).partition("=")
            return f"{override.input_line}: add -m to run every value, or type '{name}=[{values}]' for a list"
        group = override.key_or_group
        if override.is_delete():
            if str(error).startswith("Config group override deletion value"):
                return f"{override.input_line}: type ~{group}, without a value"
            continue
        if group in _groups(config_name):
            if line := _not_a_choice(error, override):
                return line
        elif NOT_A_CHOICE.match(str(error)) and (is_dir(config_dir() / group) or group == "hydra"):
            return f"{override.input_line}: {group} is not a group of this command: leave it out"
    own = [str(override.input_line) for override in overrides if override.key_or_group.startswith("hydra.")]
    if arguments and own and not isinstance(error, HydraException | OmegaConfBaseException):  # logging, for example
        return f"{' '.join(own)}: {first_line(root(error))}"
    return None


def _not_a_choice(error: Exception, override: Override) -> str | None:
    """A line if the value of a group is not one of its choices."""
    group, value = override.key_or_group, override.value()
    if isinstance(value, str) and "${" not in value and ".." not in value:
        if not (isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{group}/{value}"):
            return None
        choices = _without_search_path([line.strip() for line in str(error).splitlines()[1:] if line.startswith("\t")])
    elif isinstance(value, list) and not value and not NOT_A_CHOICE.match(str(error)):
        return None
    else:
        choices = []
    choices = choices or sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    known = f"{group} is one of {', '.join(choices)}" if choices else "name one choice"
    return f"{override.input_line}: no such choice; {known}"


@functools.cache
def _groups(config_name: str) -> frozenset[str]:
    """Groups of a primary configuration, and Hydra's own."""
    own = {"hydra/launcher", "hydra/sweeper", "hydra/help", "hydra/hydra_help", "hydra/job_logging", "hydra/output"}
    own |= {"hydra/hydra_logging", "hydra/callbacks", "hydra/env"}
    path = config_dir() / f"{config_name}.yaml"
    if not path.is_file():
        return frozenset(own)
    defaults: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    names = [name.split()[-1] for entry in defaults["defaults"] if isinstance(entry, dict) for name in entry]
    return frozenset({*own, *names})


@functools.cache
def _top_level_keys(config_name: str) -> frozenset[str]:
    path = config_dir() / f"{config_name}.yaml"
    keys = {str(key) for key in OmegaConf.load(path)} if path.is_file() else set()
    groups = {group for group in _groups(config_name) if "/" not in group}
    return frozenset((keys | groups) - {"defaults"})


def _settings_in_groups(config_name: str, name: str) -> list[str]:
    """Settings inside groups whose names end like one without a group: `trainer.max_epochs` for `epochs`."""
    from nsaug.cli.compose import compose

    groups = compose(config_name, []).items() if "." not in name else ()
    keys = [".".join(map(str, (group, key))) for group, node in groups if isinstance(node, DictConfig) for key in node]
    return [key for key in keys if re.search(rf"[._]{re.escape(name)}$", key)]


def _hydra_error(error: Exception, config_name: str) -> str:
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else None
    if isinstance(cause, OmegaConfBaseException):
        key = getattr(cause, "full_key", None) or ""
        if "not in struct" in str(cause) and key:
            parent = getattr(cause, "parent_node", None)
            if inner := _settings_in_groups(config_name, key):
                return f"{key}: no such setting; did you mean {' or '.join(inner)}?"
            return unknown_key(key, [str(name) for name in parent] if isinstance(parent, DictConfig) else [])
        return f"{key}: {first_line(cause)}"
    if match := re.match(r"Could not override '(.*?)(?:@.*)?'\. No match in the defaults list", text):
        if not match[1]:
            return "=: a setting has the form name=value"
        return unknown_key(match[1], _top_level_keys(config_name))
    if match := re.match(r"Override (\S*) looks like a config group override, but config group '(.*)' does", text):
        return f"{match[1]}: there is no group {match[2]}; the form name@package=choice is for groups only"
    if match := re.match(r"Could not delete (?:from config\. )?'(.*?)'", text):
        return f"~{match[1]}: nothing to remove, there is no such setting"
    if match := re.match(r"Could not append to config\. An item is already at '(.*)'\.", text):
        return f"+{match[1]}: this setting exists: leave out the +"
    key = getattr(error, "full_key", None)
    if isinstance(error, OmegaConfBaseException) and key:
        return f"{key}: {text}"
    return " ".join(_without_search_path(lines)[:2])


def _missing_config(error: MissingConfigException) -> str:
    # "Could not find 'model/x'\n\nAvailable options in 'model':\n\ta\n\tb"
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if "submitit" in choice:
        return "this launcher needs another package: pip install hydra-submitit-launcher"
    if choice == "optuna":
        return "this sweeper needs another package: pip install 'nsaug[optuna]'"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    choices = [line for line in _without_search_path(lines[1:]) if not line.startswith("Available")]
    if group and choices:
        return f"{group}={choice}: no such choice; {group} is one of {', '.join(choices)}"
    return " ".join(_without_search_path(lines))


def _without_search_path(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(("Config search path", "provider="))]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Message for a setting that does not exist, given by its path."""
    prefix, _, name = key.rpartition(".")
    return unknown_name(prefix, name, known)


def root(error: BaseException) -> Exception:
    """The exception that caused an exception, at the start of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, Exception) else Exception(str(error))
