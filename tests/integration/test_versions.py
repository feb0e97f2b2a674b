"""Claims about versions: the tested oldest versions are the lower bounds of ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normalize(name: str) -> str:
    """Return the name of a distribution in lower case with hyphens."""
    return name.lower().replace("_", "-")


def read_pins(file: str) -> dict[str, list[str]]:
    """Return the pinned versions of a constraints file by name.

    A name has several versions if they differ by the version of Python.
    """
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / file).read_text(), re.M):
        pins.setdefault(normalize(name), []).append(version)
    return pins


def lower_bounds(requirements: list[str]) -> dict[str, str]:
    """Return the lower bounds of requirements by name; a requirement without one is left out."""
    pattern = r"([\w-]+)(?:\[\w+\])?>=([\d.]+)"
    matches = (re.fullmatch(pattern, requirement) for requirement in requirements)
    return {normalize(match[1]): match[2] for match in matches if match}


def is_first_allowed(bound: str, version: str) -> bool:
    """Tell whether a version equals a lower bound, up to zeros at its end."""
    return version == bound or version.startswith(bound + ".")


def test_golden_the_oldest_versions_are_the_lower_bounds() -> None:
    required = lower_bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
    assert {"jax", "flax", "optax", "numpy", "pytest"} <= set(required)
    oldest = read_pins("constraints-oldest.txt")
    wrong = {
        name: (bound, oldest.get(name))
        for name, bound in required.items()
        if name not in oldest
        or not all(is_first_allowed(bound, version) for version in oldest[name])
    }
    assert not wrong


def test_golden_every_requirement_is_pinned_to_a_newest_version() -> None:
    extras = PROJECT["optional-dependencies"]
    required = [*PROJECT["dependencies"], *extras["test"], *extras["notebooks"], *extras["docs"]]
    assert not set(lower_bounds(required)) - set(read_pins("constraints.txt"))


def test_golden_newer_pythons_have_the_newer_jax() -> None:
    text = (ROOT / "constraints.txt").read_text()
    for name in ("jax", "jaxlib"):
        older, newer = read_pins("constraints.txt")[name]
        assert f'{name}=={older}; python_version < "3.12"' in text
        assert f'{name}=={newer}; python_version >= "3.12"' in text
        assert [int(part) for part in older.split(".")] < [int(part) for part in newer.split(".")]
