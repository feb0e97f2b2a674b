"""The documents name only what exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IDENTIFIER = re.compile(r"`((?:rpo_theory|bandits|llm|rpo)(?:\.[A-Za-z_0-9]+)+)`")
TEST = re.compile(r"`(test_[a-z0-9_]+)`")
CITATION = re.compile(r"`([a-z]+:\d\d)`")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def resolve(identifier: str) -> object:
    """Import the longest module of a dotted name and follow the rest as attributes."""
    parts = identifier.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(identifier)


DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_identifier_in_the_documents_can_be_imported(document: str) -> None:
    identifiers = IDENTIFIER.findall(read(document))
    assert len(identifiers) > 1 or document not in ("docs/notation.md", "docs/theorems.md")
    for identifier in identifiers:
        resolve(identifier)


def test_property_every_test_that_a_verdict_rests_on_exists() -> None:
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    named = set(TEST.findall(read("docs/theorems.md")))
    assert len(named) > 30
    assert named <= defined, named - defined


def test_property_every_citation_is_in_the_bibliography() -> None:
    known = set(re.findall(r"^@\w+\{([^,]+),", read("docs/references.bib"), re.M))
    for path in [*ROOT.glob("rpo_theory/*.py"), *ROOT.glob("bandits/*.py"), *ROOT.glob("llm/*.py")]:
        cited = set(CITATION.findall(path.read_text(encoding="utf-8")))
        assert cited <= known, (path.name, cited - known)


def test_raises_an_identifier_that_does_not_exist() -> None:
    with pytest.raises(AttributeError):
        resolve("rpo_theory.losses.no_such_loss")


def test_property_local_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), (document.name, target)


def test_property_the_python_of_the_readme_runs_and_its_three_routes_agree() -> None:
    source = re.search(r"```python\n(.*?)```", read("README.md"), re.S)
    assert source is not None
    names: dict = {}
    exec(source.group(1), names)
    exact, other, third = (names[name].value.policy for name in ("exact", "other", "third"))
    assert abs(exact - other).max() < 1e-9
    assert abs(exact - third).max() < 1e-6
    assert float(names["proof"].duality_gap) < 1e-9
