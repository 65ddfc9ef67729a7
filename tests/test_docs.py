"""Python code in README.md and docs/ runs or imports, links lead somewhere, and the site loads only its own files."""

import ast
import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, TensorDataset

from nsaug.cli import train
from tests.commands import FAST, run
from tests.conftest import ROOT, TINY
from tests.doc_blocks import PAGES, read_blocks


def python_blocks(page):
    return [block.text for block in read_blocks(page) if block.language == "python"]


@pytest.fixture
def without_weights(monkeypatch):
    """`timm.create_model` without weights, which would be downloaded."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))


def test_readme_synthesizes_noise_in_five_lines(without_weights):
    code = python_blocks("README.md")[-1]
    names = {}
    exec(code, names)
    result = names["result"]
    assert result.noise.shape == (4, 196, 384)
    assert result.converged.all()
    assert result.influence_after.max() < 0.3
    with torch.no_grad():
        change = names["logits"].softmax(1) - names["vit"](names["images"]).softmax(1)
    torch.testing.assert_close(change.square().sum(1), result.influence_after, atol=1e-6, rtol=1e-3)
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 5


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python_code_imports_what_exists(page):
    for code in python_blocks(page):
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, type_ignores=[]), page, "exec"), {})


@pytest.fixture
def names(monkeypatch, tmp_cwd):
    """What the pages leave to the reader: pretrained weights, which are those of a tiny model here, and loaders."""
    create, generator = timm.create_model, torch.Generator().manual_seed(0)

    def create_tiny(name, *, pretrained, num_classes):
        assert pretrained
        return create(name, img_size=8, patch_size=2, num_classes=num_classes, **TINY)

    monkeypatch.setattr(timm, "create_model", create_tiny)
    images, labels = torch.rand(40, 3, 8, 8, generator=generator), torch.randint(37, (40,), generator=generator)
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    return {f"{split}_loader": loader for split in ("train", "val", "test")}


def test_readme_finetunes_and_evaluates_in_five_lines(names, capsys):
    code = python_blocks("README.md")[0]
    exec(code, names)
    printed = capsys.readouterr().out
    assert re.search(r"plain .* nullspace", printed)
    assert set(names["result"].differences["name"]) == {"nullspace"}
    statements = [line for line in code.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 5


def test_library_page(names, capsys):
    before = None
    for code in python_blocks("docs/library.md"):
        exec(code, names)
        before = before or copy.deepcopy(names["model"].state_dict())
    assert names["tuned"].history["epoch"].tolist() == [*range(10)]
    assert {"value", "low", "high"} <= {*names["top1"].columns}
    assert {"difference", "images_low", "images_high"} <= {*names["gain"].columns}
    assert Path("outputs/report/report.html").is_file()
    assert any(Path("outputs/cache").rglob("*.npz"))
    page = (ROOT / "docs/library.md").read_text()
    (line,) = re.findall(r"^(train_loader yields .*)$", page, flags=re.MULTILINE)
    ((images, labels), *_) = names["train_loader"]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with pytest.raises(ValueError, match="train_loader yields images") as error:
        names["nsaug"].finetune(names["model"], [((images.round() - mean) / std, labels)])
    assert str(error.value) == line
    names["vit"].release()
    assert any(not torch.equal(value, before[key]) for key, value in names["model"].state_dict().items())


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """One of the models that `make demo` trains, after one epoch."""
    monkeypatch.chdir(tmp_path)
    run(train, monkeypatch, *FAST, "trainer.max_epochs=1", "hydra.run.dir=outputs/demo/pretrained/seed0")


def test_method_page_prints_its_table(demo, capsys):
    capsys.readouterr()
    names = {}
    exec(python_blocks("docs/method.md")[0], names)
    heading, *rows = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/method.md").read_text()
    assert f"\n{heading}\n" in page
    assert len(rows) == 16
    for row in rows:  # the values depend on the model
        init_scale, num_steps, *_ = row.split()
        assert re.search(rf"^ +{re.escape(init_scale)} +{num_steps} ", page, flags=re.MULTILINE), row


@pytest.mark.parametrize("path", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(path):
    page = ROOT / path
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


EXTERNAL = r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//|<link\b[^>]*\bhref=["'](?:https?:)?//"""


def test_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for path in PAGES:
        if path.startswith("docs/"):
            assert path.removeprefix("docs/").replace(".md", ".html") in pages
    assert not [name for name, text in pages.items() if re.search(EXTERNAL, text)]
    assert "make setup" in re.sub(r"<[^>]*>", "", pages["index.html"])  # from README.md
    assert 'id="nsaug.nullspace.synthesize"' in pages["reference/nullspace.html"]  # from docstrings
    assert not [style for style in tmp_path.rglob("*.css") if re.search(r"url\(.?https?:", style.read_text())]
