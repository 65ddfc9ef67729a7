"""Entry points with one-line errors, and checks of a configuration before anything is built."""

import functools
import inspect
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ValidationError

from nsaug.cli.command_line import config_dir
from nsaug.cli.compose import VERSION_BASE, open_nodes
from nsaug.cli.errors import format_error, print_error, unknown_key
from nsaug.cli.faults import exit_interrupted, flush_stdout, raise_on_signals
from nsaug.cli.sweeps import name_sweep_runs
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.types import adapter, problem, shown


def entry_point(
    config_name: str, complete: Callable[[list[str]], list[str]] = list
) -> Callable[[Callable[[DictConfig], object]], Callable[[], None]]:
    """Turn a function of a configuration into a command: `hydra.main` with one-line errors and exit code 1.

    SIGINT and SIGTERM are one line, too, with exit codes 130 and 143.
    A failed run of a multirun is reported and the other runs continue; the exit code is then 1 at the end.
    A bug is one line, too; its traceback is in the run's log file. HYDRA_FULL_ERROR=1 shows tracebacks.
    The current folder is appended to `sys.path`, so that `_target_` can name a module there.

    Args:
        config_name: the primary configuration, such as `train`.
        complete: adds arguments to those that were typed; gets them sorted, options first.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        def main() -> None:
            failed = started = False
            arguments: list[str] = []
            main_process = os.getpid()

            @functools.wraps(task)
            def run(cfg: DictConfig) -> object:  # what a sweeper that searches optimizes
                nonlocal failed, started
                started = True
                try:
                    with quiet_libraries():
                        return task(cfg)
                except Exception as error:
                    if _show_tracebacks():
                        raise
                    if os.getpid() != main_process:  # a launcher's process: Hydra passes the error on
                        raise UserError(format_error(error)) from None
                    print_error(error)
                    failed = True
                    if HydraConfig.get().mode != RunMode.MULTIRUN:
                        sys.exit(1)
                    return None

            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())
            with raise_on_signals(), _hydra_raises_errors(), open_nodes(), warnings.catch_warnings():
                warnings.filterwarnings("error", "provider=.* is not available")  # a folder in hydra.searchpath
                try:
                    arguments = complete(_sort_arguments(sys.argv[1:]))
                    sys.argv[1:] = [*arguments, *name_sweep_runs(arguments)]
                    hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=config_name)(run)()
                except KeyboardInterrupt as error:
                    if _show_tracebacks():
                        raise
                    exit_interrupted(error)
                except Exception as error:
                    if _show_tracebacks():
                        raise
                    if isinstance(error, OSError) and not isinstance(error, HydraException) and not started:
                        error = _unwritable(error)
                    print_error(error, config_name, None if started else arguments)
                    sys.exit(1)
                finally:
                    flush_stdout()
            if failed:
                sys.exit(1)

        return main

    return decorate


def _sort_arguments(arguments: list[str]) -> list[str]:
    """Options first, then settings, as Hydra's parser needs them; raises UserError for an unknown option."""
    parser = get_args_parser()
    parser.error = _raise_user_error  # type: ignore[method-assign, assignment]
    settings = parser.parse_intermixed_args(arguments).overrides
    for setting in settings:
        if setting in ("hydra.run.dir=", "hydra.sweep.dir="):
            raise UserError(f"{setting} is empty: type {setting}PATH")
    return [argument for argument in arguments if argument not in settings] + settings


def _raise_user_error(message: str) -> None:
    if message.startswith("unrecognized arguments: "):  # argparse lists all settings after it, too
        prefix, _, rest = message.partition(": ")
        message = f"{prefix}: {' '.join(word for word in rest.split() if word.startswith('-'))}"
    raise UserError(f"{message}: type name=value, or see --help and --hydra-help")


def _unwritable(error: OSError) -> UserError:
    return UserError(
        f"the output folder cannot be written ({first_line(error)}): set hydra.run.dir (with -m hydra.sweep.dir) to a"
        " folder that can"
    )


_TRACEBACKS = "NSAUG_TRACEBACKS"


@contextmanager
def _hydra_raises_errors() -> Iterator[None]:
    """Make Hydra raise errors: without HYDRA_FULL_ERROR it prints several lines and exits."""
    show = _show_tracebacks()
    os.environ["HYDRA_FULL_ERROR"], os.environ[_TRACEBACKS] = "1", str(int(show))
    try:
        yield
    finally:
        del os.environ[_TRACEBACKS]
        if not show:
            del os.environ["HYDRA_FULL_ERROR"]


def _show_tracebacks() -> bool:
    return os.environ.get(_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence hints of libraries that do not apply here, inside this context."""
    import lightning  # noqa: F401  (importing it sets its log levels)

    loggers = [logging.getLogger(name) for name in ("timm", "lightning.pytorch", "lightning.fabric", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    hints = (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*exists and is not empty.*",
        ".*This DataLoader will create.*",
        ".*LeafSpec.*",
        ".*litlogger.*",
        ".*have no `val_dataloader`.*",
        ".*Total length of .* across ranks is zero.*",  # data.val_fraction=0
        ".*decompression bomb DOS.*",  # images of 90 to 179 million pixels are read; larger ones are unreadable
        ".*Transparency expressed in bytes.*",
        ".*Corrupt EXIF data.*",
    )
    with warnings.catch_warnings():
        for hint in hints:
            warnings.filterwarnings("ignore", hint)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def validate_config(cfg: DictConfig, top_level_keys: set[str]) -> None:
    """Check a composed configuration before anything is built.

    A node with a `_target_` is checked against the signature of the target: its keys, and its values against the
    annotations, ranges included.

    Raises:
        UserError: a key is unknown (also one added with `+key`), a value is missing, of a wrong type or out of range.
    """
    for key in cfg:
        if key not in top_level_keys:
            raise UserError(unknown_key(str(key), top_level_keys))
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} is not set: type {missing[0]}=...")
    _check_node(cfg, "")


def check_groups(cfg: DictConfig, groups: Iterable[str]) -> None:
    """Raise UserError if a group is missing."""
    for group in groups:
        if not isinstance(cfg.get(group), DictConfig):
            raise UserError(f"{group}=null: this group cannot be left out")


def _check_node(node: Any, path: str) -> None:
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            _check_node(node[index], f"{path}[{index}]")
    if not isinstance(node, DictConfig):
        return
    target = _target(node, path) if "_target_" in node else None
    known = parameters(target) if target else None
    for key in map(str, node):
        name, value = f"{path}.{key}" if path else key, node[key]
        if not OmegaConf.is_interpolation(node, key):  # ${nullspace} is checked as cfg.nullspace
            _check_node(value, name)
        if known is None or key.startswith("_"):
            continue
        if key not in known:
            raise UserError(unknown_key(name, known))
        if not _is_target(value):
            validate_value(name, to_container(value), known[key], is_converted=_converts(target))


def to_container(value: Any) -> Any:
    """Resolve a node to plain dicts and lists; return other values unchanged."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _is_target(value: Any) -> bool:
    """Whether Hydra builds the value: a node with a `_target_`, or a list of such nodes."""
    if isinstance(value, ListConfig):
        return len(value) > 0 and all(map(_is_target, value))
    return isinstance(value, DictConfig) and "_target_" in value


def _target(node: DictConfig, path: str) -> Any:
    name = node["_target_"]
    advice = "name an installed module, or one in the current folder"
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}._target_={shown(name)}: should be the name of a class or function: {advice}")
    try:
        target = get_object(name)
    except Exception as error:
        cause = error.__cause__
        reason = first_line(cause if isinstance(cause, Exception) else error)
        raise UserError(f"{path}._target_={name}: there is no such class or function ({reason}): {advice}") from error
    if not callable(target):
        raise UserError(f"{path}._target_={name}: is a {type(target).__name__}, not a class or function: {advice}")
    return target


def _converts(target: Any) -> bool:
    """Whether a class or function converts its arguments by pydantic, such as text to a number."""
    function = target.__init__ if inspect.isclass(target) else target
    return hasattr(target, "__pydantic_fields__") or hasattr(function, "raw_function")


def validate_value(name: str, value: Any, annotation: Any, *, is_converted: bool = True) -> None:
    """Check one value against a type.

    Args:
        name: of the setting.
        value: its value.
        annotation: the type.
        is_converted: whether the receiver converts it by pydantic; otherwise '1' is not a number.

    Raises:
        UserError: the value is not of the type, in one line.
    """
    try:
        # A number given as true is a mistake, whatever the class.
        strict = True if isinstance(value, bool) or (isinstance(value, str) and not is_converted) else None
        adapter(annotation).validate_python(value, strict=strict)
    except ValidationError as error:
        reasons = dict.fromkeys(map(problem, error.errors(include_url=False)))
        raise UserError(f"{name}={shown(value)}: {' or '.join(reasons)}") from error


def parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameter names and annotations of a callable, including those that **kwargs passes to base classes."""
    if hasattr(target, "__pydantic_fields__"):
        hints = typing.get_type_hints(target, include_extras=True)
        return {name: hints[name] for name in target.__pydantic_fields__}
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    annotations: dict[str, Any] = {}
    for function in functions:
        signature = inspect.signature(function)
        try:
            hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
        except NameError:  # a user's class may import the names of its annotations under TYPE_CHECKING only
            hints = {}
        kinds = [parameter.kind for parameter in signature.parameters.values()]
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                annotations.setdefault(name, hints.get(name, Any))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return annotations


def check_and_instantiate(node: Mapping[str, Any], path: str) -> Any:
    """Check a node with a `_target_` against its signature, as `validate_config` does, and build its object."""
    config = OmegaConf.create(dict(node))
    _check_node(config, path)
    return instantiate(config)


def instantiate(node: Any, kind: Any = object, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate`; whatever the target raises becomes a UserError in one line, with the node's path.

    Args:
        node: the node.
        kind: what the target has to build: a class, or a tuple of classes.
        kwargs: further arguments of the target.
    """
    try:
        built = hydra.utils.instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValidationError):  # settings that contradict each other
            reason = "; ".join(map(problem, cause.errors()))
        elif isinstance(cause, Exception):  # for example lightning.Trainer without the device
            reason = first_line(cause)
        else:
            raise
        raise UserError(f"{node._get_full_key('') or node['_target_']}: {reason}") from error
    if not isinstance(built, kind):
        names = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        name = f"{node._get_full_key('')}._target_={node['_target_']}"
        raise UserError(f"{name}: builds a {type(built).__name__}: name one that builds a {names}")
    return built
