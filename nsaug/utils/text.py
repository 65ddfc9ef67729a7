"""Text of any origin, made printable: names of files, classes and runs may hold control characters."""

import logging
import os
import re
import unicodedata

INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode categories that are written as escapes: control and format characters, surrogates, line separators."""
JOINERS = "\u200c\u200d"
"""Format characters that are a part of words in some scripts, and of emoji."""


def printable(text: str) -> str:
    """Replace characters that cannot be printed by escapes such as `\\x00`; ordinary text is unchanged."""
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in INVISIBLE or character in JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def decodable(name: str) -> str:
    """A file name without surrogates: bytes that are not UTF-8 become escapes such as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class PrintableFormatter(logging.Formatter):
    """Escapes what cannot be printed in a log message; line breaks and tabs are kept."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(
            part if part in "\n\t" else printable(part) for part in re.split("([\n\t])", super().format(record))
        )
