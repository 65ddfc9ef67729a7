"""Fail on words that DESIGN.md bans from code, docs and messages.

    python scripts/check_language.py [FILE ...]      without files: all tracked files with one of SUFFIXES

Prints file:line and the word. `each` and `found` are fine as words, but not as names of variables in Python.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".py", ".yaml", ".yml", ".cff", ".md", ".html", ".sh")
WORDS = re.compile(r"\b(judg(?:e[sd]?|ing)|told|anew|mend(?:s|ed|ing)?|dear(?:er|est)?)\b", re.IGNORECASE)
PHRASES = re.compile(
    r"what belongs to|of which there are|\broom for\b|\bma(?:ke|kes|de|king) room\b|\bGB of room\b", re.IGNORECASE
)
VARIABLES = {"each", "found"}


def main() -> None:
    files = (
        sys.argv[1:] or subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    )
    checked = [Path(file) for file in files if file.endswith(SUFFIXES) and Path(file).name != Path(__file__).name]
    hits = [hit for file in checked if file.is_file() for hit in check(file)]
    print("\n".join(hits), end="\n" * bool(hits))
    sys.exit(bool(hits))


def check(file: Path) -> Iterator[str]:
    """Yield `file:line: word` for every banned word of a file."""
    text = file.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        # snake_case and camelCase names are words, too
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line.replace("_", " "))
        for match in [*WORDS.finditer(spaced), *PHRASES.finditer(spaced)]:
            yield f"{file}:{number}: {match[0]}"
    if file.suffix == ".py":
        for number, name in bound_names(text):
            if name in VARIABLES:
                yield f"{file}:{number}: variable {name}"


def bound_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of everything that is assigned, a loop target or a parameter."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


if __name__ == "__main__":
    main()
