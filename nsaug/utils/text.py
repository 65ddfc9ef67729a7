"""Text of any origin, made printable: names may hold control characters. Lines of progress."""

import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode categories that are written as escapes: control and format characters, surrogates, line separators."""
JOINERS = "\u200c\u200d"
"""Format characters that are a part of words in some scripts, and of emoji."""

MARKDOWN_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`*[]|~$"}
)

LINE_SECONDS = 30.0
"""Time between two lines of progress where stdout is not a terminal."""

MAX_TITLE_LENGTH = 128
"""Of the name of a run, in characters: the limit of W&B."""


def printable(text: str) -> str:
    """Replace characters that cannot be printed by escapes such as `\\x00`; ordinary text is unchanged."""
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in INVISIBLE or character in JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def preview(names: Sequence[str], count: int = 3) -> str:
    """The first names, as text of one line."""
    return printable(", ".join(names[:count])) + (", ..." if len(names) > count else "")


def markdown_text(text: str) -> str:
    """Text without meaning in Markdown and HTML, for paragraphs and table cells."""
    return text.translate(MARKDOWN_ESCAPES)


def decodable(name: str) -> str:
    """A file name without surrogates: bytes that are not UTF-8 become escapes such as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class PrintableFormatter(logging.Formatter):
    """Escapes what cannot be printed in a log message; line breaks and tabs are kept."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(
            part if part in "\n\t" else printable(part) for part in re.split("([\n\t])", super().format(record))
        )


def format_duration(seconds: float) -> str:
    """A duration in its largest units, such as `40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def run_title(name: str, settings: Mapping[str, Any], seed: int | None) -> str:
    """Name of a run after its settings, such as `nullspace-eps0.03-s0`; those that are None are left out.

    Args:
        name: of the method.
        settings: by dotted keys; only their last parts are shown, as far as these differ.
        seed: of the run.
    """
    shown = {key: value for key, value in settings.items() if value is not None}
    last_parts = [key.rpartition(".")[2] for key in shown]
    end = "" if seed is None else f"-s{seed}"
    for (key, value), last in zip(shown.items(), last_parts, strict=True):
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        title = last if last_parts.count(last) == 1 else key
        name += f"-{title}{text}" if text[:1].isdigit() else f"-{title}-{text}"
    return printable(name)[: MAX_TITLE_LENGTH - len(end)] + end
