"""The Python code in README.md and docs/method.md runs, and prints what the page shows."""

import re

import pytest
import timm
import torch

from nsaug.cli import train
from tests.commands import FAST, run
from tests.conftest import ROOT


def python_blocks(path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"{path} has no Python code"
    return blocks


def test_readme_synthesizes_noise_in_five_lines(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))  # no network
    (code,) = python_blocks("README.md")
    names = {}
    exec(code, names)
    result = names["result"]
    assert result.noise.shape == (4, 196, 384)
    assert result.converged.all()
    assert result.influence_after.max() < 0.03
    with torch.no_grad():
        change = names["logits"].softmax(1) - names["vit"](names["images"]).softmax(1)
    torch.testing.assert_close(change.square().sum(1), result.influence_after, atol=1e-6, rtol=1e-3)
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 5


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """One of the models that `make demo` trains, after one epoch."""
    monkeypatch.chdir(tmp_path)
    run(train, monkeypatch, *FAST, "trainer.max_epochs=1", "hydra.run.dir=outputs/demo/pretrained/seed0")


def test_method_page_prints_its_table(demo, capsys):
    capsys.readouterr()
    names = {}
    for code in python_blocks("docs/method.md"):
        exec(code, names)
    heading, *rows = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/method.md").read_text()
    assert f"    {heading}\n" in page
    assert len(rows) == 16
    for row in rows:  # the values depend on the model
        init_scale, num_steps, *_ = row.split()
        assert re.search(rf"^ +{re.escape(init_scale)} +{num_steps} ", page, flags=re.MULTILINE), row


PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    page = ROOT / path
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
