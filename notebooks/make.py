"""Execute the notebooks and write them with outputs: ``python notebooks/make.py [NUMBER ...]``.

The sources are the ``.py`` files in this folder, in jupytext's percent format. Equal outputs give
equal files: cell identifiers are numbered, and temporary folders are replaced by a fixed name.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_TIMEOUT = 120
"""Seconds that one cell may take."""

TEMPORARY_FOLDER = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+")
"""A temporary folder in the output of a cell; its name differs from run to run."""


def find_sources(*numbers: str) -> list[Path]:
    """Return the sources of the notebooks with these two-digit numbers, or all sources."""
    sources = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    return [path for path in sources if not numbers or path.name[:2] in numbers]


def execute(source: Path) -> nbformat.NotebookNode:
    """Run a source file and return the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3").execute(cwd=str(FOLDER))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            has_figure = any("image/png" in output.get("data", {}) for output in cell.outputs)
            cell.outputs = [
                output for output in cell.outputs if not _is_noise(output, has_figure=has_figure)
            ]
            for output in cell.outputs:
                if "text" in output:
                    output.text = TEMPORARY_FOLDER.sub("FOLDER", output.text)
    notebook.metadata.pop("language_info", None)
    return notebook


def _is_noise(output: nbformat.NotebookNode, *, has_figure: bool) -> bool:
    """Tell whether an output is stderr, or the repr of the object that drew the cell's figure."""
    is_repr = output.output_type == "execute_result"
    return output.get("name") == "stderr" or (is_repr and has_figure)


def main() -> None:
    """Execute and write the notebooks whose numbers are given, or all of them."""
    for source in find_sources(*sys.argv[1:]):
        start = time.perf_counter()
        nbformat.write(execute(source), source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
