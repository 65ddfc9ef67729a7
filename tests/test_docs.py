"""The code in README and docs runs as it stands there."""

import re

import pytest
import timm
import torch

from nsaug.cli import train
from tests.commands import FAST, run
from tests.conftest import ROOT


def blocks(path):
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{path} holds no code"
    return found


def test_the_five_lines_of_the_readme(monkeypatch):
    """With random weights in place of the hub's."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=not pretrained))
    (code,) = blocks("README.md")
    names = {}
    exec(code, names)
    found = names["found"]
    assert found.noise.shape == (4, 196, 384)
    assert found.converged.all()
    assert found.influence_after.max() < 0.03
    with torch.no_grad():
        moved = names["logits"].softmax(1) - names["vit"](names["images"]).softmax(1)
    torch.testing.assert_close(moved.square().sum(1).detach(), found.influence_after, atol=1e-6, rtol=1e-3)
    told = [line for line in code.splitlines() if line and not line.startswith(("import", "from", "print"))]
    assert len(told) <= 5


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A little of what `make demo` leaves."""
    monkeypatch.chdir(tmp_path)
    run(train, monkeypatch, *FAST, "trainer.max_epochs=1", "hydra.run.dir=outputs/demo/pretrained/seed0")


def test_the_code_of_the_method_page(demo, capsys):
    capsys.readouterr()
    names = {}
    for code in blocks("docs/method.md"):
        exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/method.md").read_text()
    for heading in (printed[0], printed[7]):
        assert f"    {heading}\n" in page
    rows = [line.split()[0] for line in printed if "%" in line[-3:]]
    assert len(rows) == 14
    assert all(re.search(rf"^ +{re.escape(row)} ", page, flags=re.MULTILINE) for row in rows)
