import logging

import pytest

from nsaug.utils.errors import UserError
from nsaug.utils.text import PrintableFormatter, decodable, printable, run_title


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b é 日本 👩‍👧 [x] $y$", "a b é 日本 👩‍👧 [x] $y$"),
        ("a\nb\0\x1b[31m", "a\\nb\\x00\\x1b[31m"),
        ("caf\udce9\u202e\u2028", "caf\\udce9\\u202e\\u2028"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected == printable(expected)
    assert str(UserError(text)) == expected, "an error is one line, whatever the name in it"
    expected.encode()


def test_log_messages_keep_their_lines():
    record = logging.makeLogRecord({"msg": "a\tb\n%s", "args": ("c\r\x1b\udce9",)})
    assert PrintableFormatter("[%(message)s]").format(record) == "[a\tb\nc\\r\\x1b\\udce9]"


def test_names_that_are_not_utf_8_become_text():
    assert decodable("caf\udce9.png") == "caf\\xe9.png"
    assert decodable("café.png") == "café.png"


@pytest.mark.parametrize(
    ("name", "settings", "seed", "expected"),
    [
        ("nullspace", {"nullspace.eps": 0.03}, 0, "nullspace-eps0.03-s0"),
        ("clean", {"eps": None}, 1, "clean-s1"),
        ("vit_s", {}, None, "vit_s"),
        ("pgd", {"attack.eps": "4-255", "nullspace.eps": 0.1}, 0, "pgd-attack.eps4-255-nullspace.eps0.1-s0"),
        ("clean", {"model": "vit_s", "optim.lr": 0.00012345}, 2, "clean-model-vit_s-lr0.0001234-s2"),
        ("x" * 200, {}, 10, "x" * 124 + "-s10"),
    ],
)
def test_run_title(name, settings, seed, expected):
    assert run_title(name, settings, seed) == expected
