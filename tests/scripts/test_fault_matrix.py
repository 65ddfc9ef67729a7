"""Every fault once, for train.py and evaluate.py; scripts/fault_matrix.py has more moments."""

import pytest

from scripts.fault_matrix import cases, check, prepare

FIRST = {(case.command, case.fault): case for case in reversed(list(cases()))}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "template"
    prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", FIRST.values(), ids=map(" ".join, FIRST))
def test_command_ends_in_one_line_and_continues(case, template, tmp_path):
    problems, line = check(case, template, tmp_path / "case")
    assert not problems, line
