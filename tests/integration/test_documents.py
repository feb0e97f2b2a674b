"""The documents name only what exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from bandits.grid import Study
from llm.config import TrainConfig
from rpo.cli import COMMANDS, Parser, declare, main
from rpo.config_files import read_config

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


DOCUMENTS = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.S | re.M)
COMMAND = re.compile(r"^ *(?:host \d)?\$? ?(rpo [a-z]+ .*?(?:\\\n.*?)*)(?: *(?:#|&$).*)?$", re.M)
NEEDS_A_RUN = re.compile(r"read_metrics|jax\.profiler")
"""Python that reads what a run of hours has left."""
NAMES_OF_OTHERS = {"CONFIG.yaml", "STUDY.yaml", "tiny.yaml"}
"""Configurations that stand for a reader's own."""


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
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
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


def commands(document: str) -> list[list[str]]:
    """Every `rpo` command line of a document."""
    found = COMMAND.findall(read(document))
    return [shlex.split(line.replace("\\\n", " "))[1:] for line in found]


def runnable(document: str) -> list[tuple[str, str, str]]:
    """Files to write, Python to run and commands to give, in the order of the document."""
    kinds = ("python", "console")
    return [b for b in FENCE.findall(read(document)) if b[0] in kinds or b[1]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_command_of_the_documents_is_one_that_rpo_takes(document: str) -> None:
    for command, *arguments in commands(document):
        assert command in COMMANDS, command
        parser = Parser(prog=command, allow_abbrev=False)
        declare(command, parser)
        args, rest = parser.parse_known_args(arguments)
        config = getattr(args, "config", None)
        assert not rest or config is not None, (command, rest)
        if config is not None and config.name not in NAMES_OF_OTHERS:
            kind = Study if command == "study" else TrainConfig
            read_config(ROOT / config, kind, rest)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if runnable(d) and d != "README.md"])
def test_property_what_a_document_says_to_do_can_be_done(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, title, content in runnable(document):
        if title:
            (tmp_path / title).write_text(content, encoding="utf-8")
        elif kind == "python" and not NEEDS_A_RUN.search(content):
            with jax.enable_x64(True):
                exec(content, names)
        elif kind == "console":
            for line in content.splitlines():
                assert line.startswith("$ rpo "), line
                with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
                    assert main(shlex.split(line)[2:]) == 0, line
