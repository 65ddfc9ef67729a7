import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nsaug.utils.errors import as_setting


def test_plain_values_stay_plain():
    assert as_setting("resume", "outputs/train/2026-11-25_10-00-00") == "resume=outputs/train/2026-11-25_10-00-00"


SPECIAL = [
    "a=b", "a,b", "0 1", "it's", 'say "x"', r"back\slash", "end\\", '\\"', "[1", "$HOME", "{a}", "#1", "*", "é", "日",
    "a~b",
]  # fmt: skip


@pytest.mark.parametrize("value", SPECIAL)
def test_special_characters_survive_shell_and_hydra(value):
    (argument,) = shlex.split(as_setting("checkpoint", value))
    assert OverridesParser.create().parse_override(argument).value() == value
