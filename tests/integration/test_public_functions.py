"""Every public function of the libraries is used by a test or by an example of a docstring."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bandits.methods.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io")
SCRIPTS = ("torture", "mutation")
"""Folders beneath ``tests`` that the suite does not run."""


def library_modules() -> list[ModuleType]:
    names = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(
            importlib.import_module(package).__path__, f"{package}."
        )
    ]
    return [importlib.import_module(name) for name in (*PACKAGES, *names)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield ``function`` of the public functions and ``.method`` of those of public classes."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) if not name.startswith("_"):
                yield name
            case ast.ClassDef(name=owner, body=body) if not owner.startswith("_"):
                for method in body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f".{method.name}"


def imported_objects(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the names that code imports from the libraries, with the imported objects."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(source), level=0) if is_library(source):
                module = importlib.import_module(source)
                for alias in node.names:
                    yield alias.asname or alias.name, member(module, alias.name)
            case ast.Import():
                for alias in node.names:
                    if is_library(alias.name):
                        module = importlib.import_module(alias.name)
                        top = importlib.import_module(alias.name.partition(".")[0])
                        yield (alias.asname, module) if alias.asname else (top.__name__, top)


def is_library(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def member(owner: Any, name: str) -> Any:
    """Return an attribute, or a submodule that is not imported yet, or None."""
    found = getattr(owner, name, None)
    if found is None and isinstance(owner, ModuleType):
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ImportError:
            return None
    return found


def resolve(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the object of a dotted name such as ``module.function``, or None."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=owner, attr=name):
            found = resolve(owner, names)
            return None if found is None else member(found, name)
    return None


def used_objects(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[int | str]:
    """Yield the identities of the objects that code uses, and ``.name`` of each attribute."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                yield f".{name}"
                yield id(resolve(node, names))
            case ast.Name(ctx=ast.Load()):
                yield id(resolve(node, names))
            case ast.Constant(value=str(name)) if name in METHODS:
                yield id(METHODS[name].fit)  # tests of studies name the methods


def example_objects(module: ModuleType) -> Iterator[int | str]:
    """Yield what the examples in the docstrings of a module use."""
    for node in ast.walk(parse(Path(str(module.__file__)))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            tree = ast.parse("".join(example.source for example in examples))
            yield from used_objects(tree, vars(module) | dict(imported_objects(tree)))


def suite_files() -> Iterator[Path]:
    for path in (ROOT / "tests").rglob("*.py"):
        if path.parent.name not in SCRIPTS:
            yield path


def test_property_every_public_function_is_used_by_a_test_or_an_example() -> None:
    # Numba compiles the sources of kernels; the tests of the kernels call them.
    modules = [item for item in library_modules() if not item.__name__.endswith("_kernel_source")]
    used = {found for module in modules for found in example_objects(module)}
    for path in suite_files():
        tree = parse(path)
        used.update(used_objects(tree, dict(imported_objects(tree))))
    unused = {
        f"{module.__name__}{name if name.startswith('.') else f'.{name}'}"
        for module in modules
        for name in public_names(parse(Path(str(module.__file__))))
        if (name if name.startswith(".") else id(getattr(module, name))) not in used
    }
    assert not unused


@pytest.mark.parametrize(
    "package", ["rpo_theory", "bandits", "llm", "rpo_io", "rpo.api", "rpo.results"]
)
def test_property_every_exported_name_is_in_the_reference(package: str) -> None:
    page = ROOT / "docs" / "reference" / f"{package.partition('.')[0]}.md"
    documented = set(re.findall(r"`(\w+)`", page.read_text(encoding="utf-8")))
    exported = set(importlib.import_module(package).__all__)
    assert exported - documented == set()


@pytest.mark.parametrize("package", [*PACKAGES, "rpo", "rpo.api", "rpo.results"])
def test_property_dir_of_a_package_shows_its_exported_names(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_closed_form_functions_of_one_name_are_distinguished_by_their_modules() -> None:
    from rpo_theory import maximin, minimax

    source = "from rpo_theory import minimax as exact\nimport rpo_theory\nexact.solve"
    tree = ast.parse(source)
    used = set(used_objects(tree, dict(imported_objects(tree))))
    assert id(minimax.solve) in used
    assert id(maximin.solve) not in used
    tree = ast.parse("import rpo_theory.maximin\nrpo_theory.maximin.solve")
    assert id(maximin.solve) in set(used_objects(tree, dict(imported_objects(tree))))
