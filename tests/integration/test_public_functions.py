"""Every public function of the libraries is used by its name: in a test, or in an example."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from pathlib import Path

from bandits.methods.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    path for name in ("rpo_theory", "bandits", "llm") for path in (ROOT / name).rglob("*.py")
]
SCRIPTS = ("torture", "mutation")
"""Folders beneath ``tests`` that the suite does not run."""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public(module: str, body: list[ast.stmt]) -> Iterator[str]:
    """``module.function`` of its functions and ``.method`` of those of its public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public("", node.body)
            else:
                yield f"{module}.{node.name}"


def used(tree: ast.Module, module: str | None = None) -> Iterator[str]:
    """Names that code uses, of ``module`` those that stand alone; of strings, learners' own."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(source)):
                yield from (f"{source.rpartition('.')[2]}.{alias.name}" for alias in node.names)
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
                yield f".{name}"
                match owner:
                    case ast.Name(id=of) | ast.Attribute(attr=of):
                        yield f"{of}.{name}"
            case ast.Name(id=name, ctx=ast.Load()):
                yield f"{module}.{name}"
            case ast.Constant(value=str(name)) if name in METHODS:
                yield f"{METHODS[name].__module__.rpartition('.')[2]}.{METHODS[name].__name__}"


def examples(path: Path) -> Iterator[str]:
    """Names that the examples of a module use."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for example in doctest.DocTestParser().get_examples(ast.get_docstring(node) or ""):
                yield from used(ast.parse(example.source), path.stem)


def test_property_every_public_function_is_used_by_a_test_or_an_example() -> None:
    names = {name for path in MODULES for name in examples(path)}
    for path in (ROOT / "tests").rglob("*.py"):
        if path.parent.name not in SCRIPTS:
            names.update(used(parsed(path)))
    unused = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        for name in public(path.stem, parsed(path).body)
        if name not in names
    ]
    assert not unused
