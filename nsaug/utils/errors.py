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
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def os_reason(error: Exception) -> str:
    """What is wrong, without the path that the operating system's message repeats."""
    return getattr(error, "strerror", None) or first_line(error)


def unknown_name(prefix: str, name: str, known: Iterable[str]) -> str:
    """Message for a setting that does not exist, with the nearest known one."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1)
    scope = f"{prefix}." if prefix else ""
    hint = f"did you mean {scope}{matches[0]}?" if matches else f"choose among {', '.join(names)}"
    return f"{scope}{name}: no such setting; {hint}"


def as_setting(name: str, value: object) -> str:
    """A setting as it can be typed in a shell: quoted where the shell or Hydra needs it."""
    text = str(value)
    if re.fullmatch(r"[\w./:~+@%-]+", text):
        return f"{name}={text}"
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + match[2].replace('"', '\\"'), text)  # Hydra's rule
    return shlex.quote(f'{name}="{escaped}"')


def log_failure(log: logging.Logger, title: str, error: Exception) -> str:
    """Log that something failed, a bug with its traceback at debug level, and return the reason in one line."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    log.error("%s failed: %s", title, reason)
    if not isinstance(error, UserError):
        log.debug("%s", "".join(traceback.format_exception(error)))
    return reason
