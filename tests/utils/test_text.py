import logging

import pytest

from nsaug.utils.errors import UserError
from nsaug.utils.text import PrintableFormatter, decodable, printable


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
