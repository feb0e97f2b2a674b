"""Claims about the script that the type checker reads: every public name, few excuses."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from types import ModuleType

import pytest

from .check import PACKAGES, SCRIPT

TEXT = SCRIPT.read_text(encoding="utf-8")
STRICT = "# pyright: strict, reportUnnecessaryTypeIgnoreComment=true"
REASONS = r"untyped pyarrow|matplotlib's \*\*kwargs"
EXCUSE = re.compile(rf"# pyright: ignore\[report\w+(?:, report\w+)*\]  # (?:{REASONS})$")
FUNCTION_PACKAGES = ("losses",)
"""Public packages whose functions users reach through the package."""


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Map the names that the script imports to full dotted names."""
    names: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.Import(names=aliases):
                names |= {alias.asname or alias.name: alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in aliases}
    return names


def used_names(text: str) -> set[str]:
    """Return the full dotted names of imported modules and members that the script uses."""
    tree = ast.parse(text)
    names = imported_names(tree)

    def full_name(node: ast.expr) -> str | None:
        match node:
            case ast.Name(id=name):
                return names.get(name)
            case ast.Attribute(value=value, attr=attribute):
                parent = full_name(value)
                return parent and f"{parent}.{attribute}"
        return None

    found = (full_name(node) for node in ast.walk(tree) if isinstance(node, ast.expr))
    return {name for name in found if name}


def defined_functions(module: ModuleType) -> list[str]:
    """Return the public functions that the source of a module defines."""
    assert module.__file__ is not None
    with open(module.__file__, encoding="utf-8") as file:
        body = ast.parse(file.read()).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]


def public_names(package: str) -> set[str]:
    """Return the dotted names of ``__all__`` and of the functions of public modules in it."""
    module = import_module(package)
    names = {f"{package}.{name}" for name in module.__all__}
    for name in module.__all__:
        member = getattr(module, name)
        is_package = hasattr(member, "__path__") and name not in FUNCTION_PACKAGES
        if not isinstance(member, ModuleType) or is_package:
            continue
        listed = getattr(member, "__all__", None)
        functions = defined_functions(member) if listed is None else listed
        names |= {
            f"{package}.{name}.{function}"
            for function in functions
            if not isinstance(getattr(member, function), type)
        }
    return names


@pytest.mark.parametrize("package", [*PACKAGES, "rpo.api"])
def test_property_the_script_uses_every_public_name(package: str) -> None:
    assert sorted(public_names(package) - used_names(TEXT)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_property_the_script_uses_only_public_names_of_a_package(package: str) -> None:
    # The lazy `__getattr__` of a package gives a misspelled name the type Any.
    used = {name for name in used_names(TEXT) if name.rpartition(".")[0] == package}
    assert sorted(used - public_names(package)) == []


def test_closed_form_names_are_resolved_through_imports() -> None:
    text = "import a as b\nfrom c import d\nx: b.E = b.f.g(d.h, [i.j])\n"
    assert used_names(text) == {"a", "a.E", "a.f", "a.f.g", "c.d", "c.d.h"}


def test_closed_form_functions_of_public_modules_are_public_names() -> None:
    names = public_names("rpo_theory")
    assert {"rpo_theory.minimax.solve_batch", "rpo_theory.losses.dpop"} <= names
    assert not any("._" in name for name in names)


def test_property_the_script_is_strict_and_excuses_only_other_packages() -> None:
    lines = TEXT.splitlines()
    assert lines[0] == STRICT
    excuses = [line for line in lines[1:] if "pyright:" in line or "type: ignore" in line]
    assert [line for line in excuses if not EXCUSE.search(line)] == []
