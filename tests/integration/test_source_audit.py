"""Claims about the sources and dependencies: no dangerous calls, and every version pinned."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("rpo_theory", "rpo_io", "bandits", "llm", "rpo")


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load", "system"}
FORBIDDEN_OPTIONS = {"trust_remote_code", "allow_pickle", "shell"}


def dangerous_calls(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            found += sorted(FORBIDDEN_MODULES & {name.split(".")[0] for name in names})
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            is_builtin = name in FORBIDDEN_CALLS
            if is_builtin or name.split(".")[-1] in FORBIDDEN_CALLS - {"compile", "exec", "eval"}:
                found.append(name)
            if name == "yaml.load" and ast.unparse(node.args[1]) != "_Loader":
                found.append(name)
            found += [
                key.arg
                for key in node.keywords
                if key.arg in FORBIDDEN_OPTIONS and ast.unparse(key.value) != "False"
            ]
    return [f"{path.name}: {call}" for call in found]


def test_property_no_source_unpickles_or_evaluates(tmp_path: Path) -> None:
    found = sorted(call for path in sources() for call in dangerous_calls(path))
    assert found == [
        *("kernel_cache.py: compile", "kernel_cache.py: exec"),  # text of this package alone
        "processes.py: pickle",  # between a process and the workers that it starts
    ]
    (tmp_path / "bad.py").write_text(
        "import pickle\nfrom os import system\nimport os, yaml, numpy as np\n"
        "eval('1')\nos.system('x')\nyaml.load('x', yaml.Loader)\n"
        "np.load('x', allow_pickle=True)\nmodel(trust_remote_code=True)\n"
    )
    assert len(dangerous_calls(tmp_path / "bad.py")) == 6


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_property_every_declared_dependency_is_pinned_to_an_allowed_version(
    python: str,
) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"]]
    # The extras of the parity tests and of accelerators are not pinned.
    declared += [each for name in extras if name not in ("parity", "tpu") for each in extras[name]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = [Requirement(line) for line in lines if line and not line.startswith("#")]
    environment = {"python_version": python}
    pins = [pin for pin in constraints if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    exact = {}
    for name, pin in zip(names, pins, strict=True):
        (specifier,) = pin.specifier
        assert specifier.operator == "==" or str(pin.specifier) == "<0"
        assert pin.url is None
        exact[name] = specifier.version
    for text in declared:
        requirement = Requirement(text)
        assert requirement.url is None
        pinned = exact[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned, prereleases=True), text
