"""The notebook of docs/: its code runs, uses public names only, and its pictures are small."""

import ast
import base64
import importlib
import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

PATH = ROOT / "docs" / "nullspace_noise.ipynb"
MAX_BYTES = 200_000
CHECK = """top1 = result.table.query("metric == 'top1' and condition == 'clean'")
assert len(top1) == 3 and top1["value"].min() > 0.8"""


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
def test_notebook_runs(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    assert list(tmp_path.iterdir()) == []
