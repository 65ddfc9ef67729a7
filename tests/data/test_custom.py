"""The example of docs/data.md."""

import re
import sys
from types import ModuleType

import pytest
from PIL import Image

from nsaug.cli import train
from tests.commands import FAST, cli_error, run
from tests.conftest import ROOT

COMMAND = ["data=custom", "data.batch_size=8", "data.num_workers=0"]


def test_example_of_a_source_trains(monkeypatch, tmp_path, tmp_cwd):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/data.md").read_text(), re.MULTILINE | re.DOTALL)
    module = ModuleType("mypackage")
    monkeypatch.setitem(sys.modules, "mypackage", module)
    exec(code, vars(module))
    (tmp_path / "cells" / "train").mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(tmp_path / f"cells/train/{number:02d}_{number % 2}.png")
    run(
        train, monkeypatch, *FAST, *COMMAND, "data._target_=mypackage.Cells", f"+data.root={tmp_path}/cells",
        "trainer.max_steps=1", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("target", "message"),
    [([], "data._target_ is not set"), (["data._target_=mypackage.Cells"], "data._target_=mypackage.Cells: there is")],
)
def test_missing_class_is_one_line(monkeypatch, capsys, tmp_cwd, target, message):
    assert message in cli_error(train, monkeypatch, capsys, *COMMAND, *target)
