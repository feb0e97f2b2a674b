"""Claims about the notebooks: each is what its source says, shows what it computed, and runs."""

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
MOST_BYTES = 400_000


def notebook(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def code(cells: Any) -> list[Any]:
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_property_a_notebook_is_its_source_with_outputs(source: Path) -> None:
    written, shown = jupytext.read(source).cells, notebook(source).cells
    assert [cell.source for cell in shown] == [cell.source for cell in written]
    for cell in code(shown):
        assert not [one for one in cell.outputs if one.output_type == "error"]
        if "plt.subplots(" in cell.source:
            assert any("image/png" in one.get("data", {}) for one in cell.outputs), cell.source
    assert any("assert" in cell.source for cell in code(shown))
    assert "## Exercise" in shown[-1].source
    assert source.with_suffix(".ipynb").stat().st_size < MOST_BYTES


def test_property_there_are_six_and_the_readme_names_each() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name[:2] for path in SOURCES] == ["01", "02", "03", "04", "05", "06"]
    assert all(f"({path.stem}.ipynb)" in readme for path in SOURCES)


@pytest.fixture(scope="module")
def make() -> ModuleType:
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
    assert len(make.executed(source).cells) > 5
