"""The error class for mistakes that a user can fix, and one-line summaries of other errors."""

import difflib
import logging
import re
import shlex
import traceback
from collections.abc import Iterable

from nsaug.utils.text import printable


class UserError(Exception):
    """A mistake that the user can fix; the message is one line: what is wrong, and what to type instead."""

    def __init__(self, text: str) -> None:
        if text.startswith("Caught ") and "Original Traceback" in text:  # torch re-raises errors of DataLoader workers
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(printable(text))  # a name in it may have a line break


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the name of its type if the message alone says too little."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError | EOFError) or not line:
        return f"{type(error).__name__}: {line}" if line else type(error).__name__
    return line


def with_type(error: Exception) -> str:
    """Return the name of an error's type and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return line if line.startswith(name) else f"{name}: {line}"


def os_reason(error: Exception) -> str:
    """What is wrong, without the path that the operating system's message repeats."""
    return getattr(error, "strerror", None) or first_line(error)


def unknown_name(prefix: str, name: str, known: Iterable[str]) -> str:
    """Message for a setting that does not exist, with the nearest known one."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1)
    scope = f"{prefix}." if prefix else ""
    hint = f"; choose among {', '.join(names)}" if names else ""
    if matches:
        hint = f"; did you mean {scope}{matches[0]}?"
    return f"{scope}{name}: no such setting{hint}"


def as_override(name: str, value: object) -> str:
    """A setting as Hydra reads it: its value is quoted where Hydra needs it."""
    text = str(value)
    return f"{name}={text if re.fullmatch(r'[A-Za-z0-9_./:+@%-]+', text) else quoted(text)}"


def quoted(text: str) -> str:
    """Text in quotes, which Hydra reads as this text."""
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + match[2].replace('"', '\\"'), text)  # Hydra's rule
    return f'"{escaped}"'


def as_setting(name: str, value: object) -> str:
    """A setting as it can be typed in a shell: quoted where the shell or Hydra needs it."""
    return shlex.quote(as_override(name, value))


def log_failure(log: logging.Logger, title: str, error: Exception) -> str:
    """Log that something failed, a bug with its traceback at debug level, and return the reason in one line."""
    reason = str(error) if isinstance(error, UserError) else with_type(error)
    log.error("%s failed: %s", title, reason)
    if not isinstance(error, UserError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    return reason
