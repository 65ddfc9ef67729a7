"""Blocks of code in README.md, CONTRIBUTING.md and docs/*.md, and the commands in them."""

import re
import shlex
from dataclasses import dataclass

from tests.conftest import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
LANGUAGES = ("sh", "console", "python", "yaml", "text", "bibtex")
INDENTED = ("docs/results.md",)
"""Pages with indented blocks, whose commands start with `python` or `make`, and whose other lines are output."""


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the number of its first line, its language, and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def path(self) -> str | None:
        """The file that a first line such as `# mypackage/method.py` names."""
        match = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return match[1] if match else None


def read_blocks(page: str) -> list[Block]:
    """All blocks of a page. Raises AssertionError for a language that is not in LANGUAGES."""
    lines = (ROOT / page).read_text().splitlines()
    blocks = []
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if line.startswith("```"):
            end = lines.index("```", number)
            blocks.append(Block(page, number + 1, line.removeprefix("```"), "\n".join(lines[number:end]) + "\n"))
            number = end + 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            assert page in INDENTED, f"{page}:{start + 1}: write ```sh, ```python or another of {LANGUAGES}"
            commands = re.findall(
                r"^    ((?:python|make) (?:.*\\\n)*.*)$", "\n".join(lines[start:number]), re.MULTILINE
            )
            blocks.append(Block(page, start + 1, "sh", "\n".join(commands) + "\n"))
    for block in blocks:
        assert block.language in LANGUAGES, f"{page}:{block.line}: the language is one of {LANGUAGES}"
    return blocks


def split_commands(block: Block) -> list[list[str]]:
    """The commands of a block of shell commands, split into words; those of `console` start with `$`."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
    words = [shlex.split(part, comments=True) for line in text.splitlines() for part in line.split(" && ")]
    return [command for command in words if command]


def page_commands(page: str) -> list[list[str]]:
    """All commands of a page, in order."""
    return [
        command
        for block in read_blocks(page)
        if block.language in ("sh", "console")
        for command in split_commands(block)
    ]
