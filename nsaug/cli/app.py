"""What is checked before anything starts, and how an error reads: one line, exit code 1."""

import difflib
import functools
import inspect
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from nsaug.utils.errors import UserError, first_line

# A folder's name of a run's overrides: attack.eps=4/255 would make a folder within a folder.
OmegaConf.register_new_resolver("nsaug.filename", lambda text: text.replace("/", ":"), replace=True)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """`hydra.main`, with errors in one line and exit code 1.

    In a multirun a run that fails is reported and the others go on; the exit code is 1 at the end.
    HYDRA_FULL_ERROR=1 shows tracebacks.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def main() -> None:
            failures: list[str] = []
            started = False
            home = os.getpid()

            @functools.wraps(task)
            def guarded(cfg: DictConfig) -> None:
                nonlocal started
                started = True
                _silence_warnings()
                try:
                    task(cfg)
                except (UserError, OmegaConfBaseException) as error:
                    if _tracebacks_wanted():
                        raise
                    if os.getpid() != home:  # a launcher's own process: Hydra brings the error back
                        raise UserError(format_error(error)) from None
                    _report(error)
                    failures.append(str(error))
                    if HydraConfig.get().mode != RunMode.MULTIRUN:
                        sys.exit(1)

            wanted = _tracebacks_wanted()
            conf = Path(__file__).resolve().parents[2] / "conf"
            run = hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(guarded)
            try:
                # Hydra prints several lines itself and exits, unless it is asked to raise.
                os.environ["HYDRA_FULL_ERROR"] = "1"
                os.environ[_WANTED] = "1" if wanted else "0"
                run()
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if wanted:
                    raise
                _report(error)
                sys.exit(1)
            except OSError as error:
                if wanted or started:
                    raise
                _report(
                    UserError(
                        f"the output folder cannot be written ({first_line(error)}): set hydra.run.dir (with -m"
                        " hydra.sweep.dir) to one that can"
                    )
                )
                sys.exit(1)
            except RuntimeError as error:
                if wanted or _NO_SLURM not in str(error):
                    raise
                _report(UserError("hydra/launcher=slurm: there is no srun here, so this machine submits no Slurm jobs"))
                sys.exit(1)
            finally:
                del os.environ[_WANTED]
                if not wanted:
                    del os.environ["HYDRA_FULL_ERROR"]
            if failures:
                sys.exit(1)

        return main

    return decorate


_NO_SLURM = "are you indeed on a slurm cluster?"
"""What submitit says where it finds no srun."""


def _silence_warnings() -> None:
    """Silences hints that do not apply: what is said on the console is for the user to act on."""
    import lightning  # noqa: F401  (it sets its own log levels when it is imported)

    for library in ("timm", "lightning.pytorch", "lightning.fabric", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.WARNING)
    hints = (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*litlogger.*",
    )
    for hint in hints:
        warnings.filterwarnings("ignore", hint)


_WANTED = "NSAUG_TRACEBACKS"


def _tracebacks_wanted() -> bool:
    return os.environ.get(_WANTED, os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"


def _report(error: Exception) -> None:
    print(f"error: {format_error(error)}", file=sys.stderr)


def format_error(error: Exception) -> str:
    """One line from an error of nsaug, Hydra or OmegaConf."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        # "Could not find 'model/x'\n\nAvailable options in 'model':\n\ta\n\tb"
        if "submitit" in str(error.missing_cfg_file):
            return "this launcher needs a package of its own: pip install hydra-submitit-launcher"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        missing = str(error.missing_cfg_file or "").split("/")
        choices = [line for line in lines[1:] if not line.startswith(("Available", "Config search", "provider="))]
        if "/".join(missing[:-1]) and choices:
            group = "/".join(missing[:-1])
            return f"{group}={missing[-1]}: no such choice; {group} is one of {', '.join(choices)}"
        return " ".join(lines)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as name=value; quote what the shell or Hydra would take apart"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else None
    if isinstance(cause, OmegaConfBaseException):
        key = getattr(cause, "full_key", None) or ""
        if "not in struct" in str(cause) and key:
            parent = getattr(cause, "parent_node", None)
            known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
            return _unknown_key(key, known)
        return f"{key}: {str(cause).splitlines()[0]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {lines[0]}"
    return " ".join(lines[:2])


def _unknown_key(key: str, known: list[str]) -> str:
    prefix, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, known, n=1)
    where = f"{prefix}." if prefix else ""
    hint = f"did you mean {where}{near[0]}?" if near else f"choose among {', '.join(sorted(known))}"
    return f"{key}: no such setting; {hint}"


def validate_config(cfg: DictConfig, known: set[str]) -> None:
    """Refuses what cannot work before anything is built.

    Every node with a `_target_` is held against the signature it will be called with: its keys, and its values
    against the annotations, ranges included.

    Args:
        cfg: a composed configuration.
        known: the keys of its top level.

    Raises:
        UserError: an unknown key (also one added with `+key`), a wrong type, a value out of range, a missing one.
    """
    for key in cfg:
        if key not in known:
            raise UserError(_unknown_key(str(key), sorted(known)))
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} is not set: type {missing[0]}=...")
    _check_node(cfg, "")


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            _check_node(node[index], f"{path}[{index}]")
    if not isinstance(node, DictConfig):
        return
    parameters = _parameters(_target(node, path)) if "_target_" in node else None
    for key in map(str, node):
        where, value = f"{path}.{key}" if path else key, node[key]
        built_elsewhere = OmegaConf.is_interpolation(node, key)  # ${nullspace} is checked where it stands
        if not built_elsewhere:
            _check_node(value, where)
        if parameters is None or key.startswith("_"):
            continue
        if key not in parameters:
            raise UserError(_unknown_key(where, list(parameters)))
        if not (isinstance(value, DictConfig) and "_target_" in value):
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            validate_value(where, plain, parameters[key])


def _target(node: DictConfig, path: str) -> Any:
    try:
        return get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{path}._target_={node['_target_']}: there is no such class or function") from error


def validate_value(where: str, value: Any, annotation: Any) -> None:
    """Holds one value against a type, in one line."""
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        reasons = dict.fromkeys(detail["msg"] for detail in error.errors(include_url=False))
        text = " or ".join(reasons).replace("Input should be", "should be").removeprefix("Value error, ")
        shown = str(value).replace("None", "null")
        raise UserError(f"{where}={shown}: {text}") from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # settings bring a configuration of their own
        return TypeAdapter(annotation)


def _parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """Names and annotations that a call of `target` takes, those that **kwargs hand to base classes included."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
        if hasattr(target, "__pydantic_fields__"):
            return {
                name: typing.get_type_hints(target, include_extras=True)[name] for name in target.__pydantic_fields__
            }
    found: dict[str, Any] = {}
    for function in functions:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
        kinds = [parameter.kind for parameter in signature.parameters.values()]
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, hints.get(name, Any))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate`, with our own errors as they are and refusals of others in one line."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return hydra.utils.instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValidationError):  # settings that contradict each other
            reasons = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in cause.errors())
            raise UserError(f"{node['_target_']}: {reasons}") from error
        if isinstance(cause, MisconfigurationException):  # a device that is not there, say
            raise UserError(f"{node['_target_']}: {first_line(cause)}") from error
        raise
