"""Run a notebook and store its outputs in it.

    python scripts/notebook.py docs/nullspace_noise.ipynb

Cells run in this process, without Jupyter. As Jupyter does, it keeps printed text, the value of a last expression that
does not end with a semicolon, and open figures.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

Output = dict[str, Any]


def main() -> None:
    path = Path(sys.argv[1])
    notebook = json.loads(path.read_text())
    run(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells of a notebook, store their outputs in it, and return its variables."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        cell["execution_count"] = number
        cell["outputs"] = _run_cell("".join(cell["source"]), names, number)
    return names


def _run_cell(source: str, names: dict[str, Any], number: int) -> list[Output]:
    """Run one cell with these variables, and return its outputs."""
    import matplotlib.pyplot as plt

    body = ast.parse(source).body
    value, printed = None, io.StringIO()
    outputs: list[Output] = []
    with contextlib.redirect_stdout(printed):
        if isinstance(last := body[-1], ast.Expr) and not source.rstrip().endswith(";"):
            exec(compile(ast.Module(body[:-1], []), f"cell {number}", "exec"), names)
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        else:
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": _show(value)}
        )
    for figure in map(plt.figure, plt.get_fignums()):
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight")
        data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return outputs


def _show(value: Any) -> dict[str, list[str]]:
    """A value as text and, where it has them, as Markdown or HTML."""
    data = {"text/plain": _lines(repr(value))}
    for kind, method in (("text/markdown", "_repr_markdown_"), ("text/html", "_repr_html_")):
        if hasattr(value, method) and (text := getattr(value, method)()):
            data[kind] = _lines(text)
    return data


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
