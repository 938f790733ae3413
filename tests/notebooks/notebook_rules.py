"""What every notebook of the project promises on the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat

from fastsd_lib.workflows import notebook as runner

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PARAMETER = re.compile(r"^([a-z_]+) = (.+?)  #@param (.+)$")
LINES_AT_MOST = 15
SHARED = {"repository", "storage_folder", "use_drive", "shared_drive"}  # fields of Setup and Storage
FORBIDDEN = (ast.If, ast.IfExp, ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.Try, ast.FunctionDef)


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def parameters(code: list[str]) -> dict[str, Any]:
    found = {}
    for line in "\n".join(code).splitlines():
        if "#@param" in line:
            match = PARAMETER.match(line)
            assert match, f"Colab cannot rewrite this line: {line}"
            found[match[1]] = ast.literal_eval(match[2])
    return found


def check(name: str) -> None:
    """A valid notebook with Colab's metadata, without outputs; short forms that decide nothing; linked steps."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4" and notebook.metadata.colab.private_outputs is True
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        assert cell.outputs == [] and cell.execution_count is None
        assert cell.source.startswith(f"#@title {number} · ") and cell.metadata.cellView == "form"
        assert len(cell.source.splitlines()) <= LINES_AT_MOST, cell.source
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
        for node in ast.walk(compile(cell.source, "cell", "exec", flags=flags)):
            assert not isinstance(node, FORBIDDEN), ast.unparse(node)
            assert not (isinstance(node, ast.Name) and node.id == "input")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    linked = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in linked] == [runner.title_of(cell.source).split(" · ")[1] for cell in cells]
    assert all(f'<a id="{anchor}"></a>' in text for _, anchor in linked)
    assert f"colab.research.google.com/github/fastsd-project/fastsd/blob/main/notebooks/{name}" in text
