"""Running a notebook from top to bottom, with other values in its forms: what Colab does when a field is edited."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import write_text

CELL_TIMEOUT_S = 6 * 3600
KERNEL_TIMEOUT_S = 300  # a loaded machine starts a kernel in a minute
_PARAM = re.compile(r"^(?P<name>[a-z_][a-z0-9_]*) = (?P<value>.+?)(?P<mark>\s*#@param.*)$", re.MULTILINE)


@dataclass(frozen=True)
class CellDone:
    """A code cell that has just run."""

    title: str  # of its form: "8 · Train"
    seconds: float
    number: int  # from 1
    total: int


def set_parameters(notebook: Any, values: Mapping[str, Any]) -> None:
    """Rewrite the `#@param` lines of these names, in place; UserError for a name that no form has."""
    left = dict(values)

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in values:
            return match[0]
        left.pop(name, None)
        return f"{name} = {values[name]!r}{match['mark']}"

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = _PARAM.sub(replaced, cell.source)
    if left:
        raise UserError(
            f"The notebook has no field {', '.join(sorted(left))}.", fix="use the names of its #@param lines."
        )


def execute(
    path: Path, values: Mapping[str, Any], out: Path, on_cell: Callable[[CellDone], None] = lambda done: None
) -> Path:
    """Run every cell of the notebook `path` in a new kernel and write it, outputs included, to `out`.

    A cell that fails ends the run: the notebook so far is written, and a UserError says which cell and why.
    """
    require("nbclient", group="train")
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, values)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    clock: dict[str, float] = {}

    def starts(cell: Any, cell_index: int) -> None:
        clock["start"] = time.monotonic()

    def ends(cell: Any, cell_index: int, execute_reply: Any) -> None:
        if cell in code and execute_reply["content"]["status"] == "ok":
            number = next(index for index, one in enumerate(code, 1) if one is cell)
            on_cell(CellDone(title_of(cell.source), time.monotonic() - clock["start"], number, len(code)))

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        startup_timeout=KERNEL_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # of what it warns, nothing concerns the reader of a notebook
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=starts,
        on_cell_executed=ends,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        failed = next(
            (
                title_of(cell.source)
                for cell in code
                if any(one.output_type == "error" for one in cell.get("outputs", ()))
            ),
            "a cell",
        )
        reason = f"{error.ename}: {error.evalue}".strip() if error.ename != "UserError" else error.evalue
        raise UserError(
            f"The cell {failed!r} of {path.name} failed. {reason}", fix=f"open {out} to see its whole output."
        ) from None
    finally:
        write_text(out, nbformat.writes(notebook))
    return out


def title_of(source: str) -> str:
    match = re.search(r"^#@title (.+)$", source, re.MULTILINE)
    return match[1].strip() if match else source.strip().splitlines()[0][:40] if source.strip() else ""
