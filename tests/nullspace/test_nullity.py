import sys

import pytest

from nsaug.nullspace import nullity


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nullity", "vit_small_patch32_224", "pvt_v2_b0"])
    nullity.main()
    *table, note = capsys.readouterr().out.splitlines()
    lines = [line for line in table if "│" in line]
    assert [cell.strip() for cell in lines[0].strip("│").split("│")] == [
        *("vit_small_patch32_224", "32x32", "3072", "384", "384", "2688")
    ]
    assert lines[1].split("│")[-2].strip() == "-"
    assert note.startswith("pvt_v2_b0: ")
    assert "is not one linear map per patch" in note


def test_no_valid_model_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nullity", "nothing"])
    with pytest.raises(SystemExit) as stop:
        nullity.main()
    assert stop.value.code == 1
    assert "is not a timm model" in capsys.readouterr().out
