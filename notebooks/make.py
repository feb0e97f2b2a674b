"""Make the notebooks from their sources, with outputs: ``python notebooks/make.py [NUMBER ...]``.

The sources are the ``.py`` files beside this one, in jupytext's percent format.
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

HERE = Path(__file__).parent
LIMIT = 120
"""Seconds for a cell."""

TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+")
"""The folder of a notebook, with another name each time."""


def sources(*numbers: str) -> list[Path]:
    """Sources of the notebooks with these numbers; of all without any."""
    every = sorted(HERE.glob("[0-9][0-9]_*.py"))
    return [path for path in every if not numbers or path.name[:2] in numbers]


def executed(source: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, the same text for the same outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute(cwd=str(HERE))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if not _of_the_machine(one, cell.outputs)]
            for one in cell.outputs:
                if "text" in one:
                    one.text = TEMPORARY.sub("FOLDER", one.text)
    notebook.metadata.pop("language_info", None)
    return notebook


def _of_the_machine(output: nbformat.NotebookNode, outputs: list[nbformat.NotebookNode]) -> bool:
    """Warnings, progress, and the name of the Python object beside a figure that was drawn."""
    drawn = any("image/png" in one.get("data", {}) for one in outputs)
    return output.get("name") == "stderr" or (output.output_type == "execute_result" and drawn)


def main() -> None:
    """Execute and write the notebooks that are named, or all."""
    for source in sources(*sys.argv[1:]):
        start = time.perf_counter()
        nbformat.write(executed(source), source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
