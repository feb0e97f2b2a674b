"""Claims about the notebooks: each equals its source, shows its outputs, and runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra `notebooks`")
nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
MAX_BYTES = 400_000
"""Size of a notebook file."""


def read_notebook(source: Path) -> Any:
    """Return the stored notebook of a source file."""
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def code_cells(cells: Any) -> list[Any]:
    """Return the code cells among the cells of a notebook."""
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_property_a_notebook_is_its_source_with_outputs(source: Path) -> None:
    in_source, stored = jupytext.read(source).cells, read_notebook(source).cells
    assert [cell.source for cell in stored] == [cell.source for cell in in_source]
    for cell in code_cells(stored):
        assert not [output for output in cell.outputs if output.output_type == "error"]
        if "plt.subplots(" in cell.source:
            has_figure = any("image/png" in output.get("data", {}) for output in cell.outputs)
            assert has_figure, cell.source
    assert any("assert" in cell.source for cell in code_cells(stored))
    assert "## Exercise" in stored[-1].source
    assert source.with_suffix(".ipynb").stat().st_size < MAX_BYTES


def test_property_there_are_eight_notebooks_and_the_readme_links_each() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name[:2] for path in SOURCES] == ["01", "02", "03", "04", "05", "06", "07", "08"]
    assert all(f"({path.stem}.ipynb)" in readme for path in SOURCES)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """Return the module ``notebooks/make.py``."""
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_property_every_cell_of_a_notebook_runs(make: ModuleType, source: Path) -> None:
    assert len(make.execute(source).cells) > 5
