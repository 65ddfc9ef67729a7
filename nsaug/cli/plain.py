"""Commands without a configuration: settings typed as name=value, errors of one line, no output folder."""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from nsaug.cli.errors import print_error
from nsaug.cli.faults import exit_interrupted, raise_on_signals
from nsaug.utils.errors import UserError, unknown_name
from nsaug.utils.types import validation_message

T = TypeVar("T")


def plain_command(task: Callable[[T], None]) -> Callable[[], None]:
    """Turn a function of settings into a command with the errors and exit codes of train.py.

    `--help` prints the docstring of the function's module, whose first indented line is the usage.

    Args:
        task: takes one argument, annotated with a `validated_dataclass`.
    """
    (parameter,) = inspect.signature(task).parameters.values()
    settings: Any = parameter.annotation
    help_text = inspect.getdoc(inspect.getmodule(task)) or ""
    usage = next(line.strip().partition("  ")[0] for line in help_text.splitlines() if line.startswith(" "))

    def main() -> None:
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print(help_text)
            return
        try:
            with raise_on_signals():
                task(_parse(settings, sys.argv[1:], usage))
        except KeyboardInterrupt as error:
            exit_interrupted(error)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print_error(error, arguments=[])
            sys.exit(1)

    return main


def _parse(settings: Any, arguments: list[str], usage: str) -> Any:
    """The settings that were typed; raises UserError for those that are missing, unknown or invalid."""
    fields = settings.__dataclass_fields__
    values: dict[str, str | None] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name.startswith("-"):
            raise UserError(f"{argument}: type name=value, as in {usage}")
        if name not in fields:
            raise UserError(unknown_name("", name, fields))
        values[name] = None if value == "null" else value
    try:
        return settings(**values)
    except ValidationError as error:
        message = validation_message(error, "", fields).removeprefix(".")
        raise UserError(f"{message}: type {usage}" if message.endswith("lacks a value") else message) from error
