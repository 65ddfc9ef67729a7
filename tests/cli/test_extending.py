"""The examples of docs/extending.md run as written."""

import re
import shlex
import sys

import pytest

from nsaug.cli import evaluate, train
from tests.commands import FAST, run
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
FILES = {text.splitlines()[0].removeprefix("# "): text for language, text in BLOCKS if language in ("python", "yaml")}
COMMANDS = [text.splitlines() for language, text in BLOCKS if language == "sh"]


NAMES = ("analysis", "attack", "benchmark", "corruption", "data", "method", "model", "noise")


@pytest.fixture
def package(tmp_cwd, tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


def test_the_page_has_an_example_of_everything():
    assert sorted(FILES) == [
        "myconf/suite/mine.yaml",
        *(f"mypackage/{name}.py" for name in NAMES),
    ]
    assert all(len(text.splitlines()) <= 36 for text in FILES.values())


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda lines: shlex.split(lines[-1])[2][:40])
def test_examples_run(commands, package, monkeypatch, capsys, tmp_path):
    if "checkpoint=outputs/mine" in commands[0]:  # the section before trains it
        run(train, monkeypatch, *FAST, "trainer.max_steps=2", "method=clean", "hydra.run.dir=outputs/mine")
    for line in commands:
        _, script, *arguments = shlex.split(line)
        if script == "train.py":
            run(train, monkeypatch, *FAST, "trainer.max_steps=2", *arguments)
            assert "weights (for timm)" in capsys.readouterr().out
        else:
            folder = f"hydra.run.dir={tmp_path}/eval"
            run(evaluate, monkeypatch, "accelerator=cpu", "tracking.wandb=off", folder, *arguments)
            rows = (tmp_path / "eval" / "results.csv").read_text()
            assert any(name in rows for name in ("stripe", "unchanged", "confidence"))
