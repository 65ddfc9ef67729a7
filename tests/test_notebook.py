"""The notebook of docs/: its code runs, uses public names only, and its pictures are small."""

import ast
import base64
import importlib
import json
import subprocess
import sys

import pytest

from scripts import notebook as runner
from tests.conftest import ROOT

PATH = ROOT / "docs" / "nullspace_noise.ipynb"
MAX_BYTES = 200_000


@pytest.fixture
def notebook():
    return json.loads(PATH.read_text())


@pytest.fixture
def trees(notebook):
    """The code cells, parsed."""
    return [ast.parse("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_public_names_only(trees):
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("nsaug")]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module)
        public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        assert {alias.name for alias in node.names} <= {*public}
    assert not [node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nsaug"}
    assert used == {"finetune", "evaluate"}


def test_outputs_are_stored_and_small(notebook):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    assert sum(len(base64.b64decode(picture)) for picture in pictures) < MAX_BYTES
    assert any("text/markdown" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.slow
def test_notebook_runs(notebook, tmp_cwd, tmp_path):
    names = runner.run(notebook)
    top1 = names["result"].table.query("metric == 'top1' and condition == 'clean'").set_index("name")["value"]
    assert top1.min() > 0.8
    assert all(
        cell["outputs"] for cell in notebook["cells"][8:] if cell["cell_type"] == "code" and "plain =" not in cell
    )
    assert list(tmp_path.iterdir()) == []


CELLS = ["import matplotlib.pyplot as plt\nx = 2", "print('text')\nx + 1", "x;", "plt.plot([0, 1]);", "x = x * 2"]


def test_runner_keeps_what_jupyter_shows(tmp_path):
    path = tmp_path / "small.ipynb"
    cells = [{"cell_type": "code", "source": [text], "outputs": ["old"], "metadata": {}} for text in CELLS]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Title"]}, *cells]}))
    subprocess.run([sys.executable, ROOT / "scripts" / "notebook.py", path], check=True, cwd=tmp_path)
    markdown, *cells = json.loads(path.read_text())["cells"]
    assert markdown == {"cell_type": "markdown", "source": ["# Title"]}
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in cells]
    assert kinds == [[], ["stream", "execute_result"], [], ["display_data"], []]
    assert cells[1]["outputs"][0]["text"] == ["text\n"]
    assert cells[1]["outputs"][1]["data"]["text/plain"] == ["3"]
    assert base64.b64decode(cells[3]["outputs"][0]["data"]["image/png"]).startswith(b"\x89PNG")
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4, 5]
