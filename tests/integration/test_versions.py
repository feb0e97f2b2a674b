"""Claims about versions: the oldest that are tested are those that ``pyproject.toml`` allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def pinned(file: str) -> dict[str, list[str]]:
    """Versions of a file of constraints; a name may have one for each of several Pythons."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / file).read_text(), re.M):
        found.setdefault(normal(name), []).append(version)
    return found


def bounds(requirements: list[str]) -> dict[str, str]:
    """Lower bounds by name."""
    found = (re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", each) for each in requirements)
    return {normal(match[1]): match[2] for match in found if match}


def same(bound: str, version: str) -> bool:
    """Whether a version is the first that a bound allows, up to zeros at its end."""
    return version == bound or version.startswith(bound + ".")


def test_golden_the_oldest_versions_are_the_lower_bounds() -> None:
    asked = bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
    assert {"jax", "flax", "optax", "numpy", "pytest"} <= set(asked)
    oldest = pinned("constraints-oldest.txt")
    wrong = {
        name: (bound, oldest.get(name))
        for name, bound in asked.items()
        if name not in oldest or not all(same(bound, version) for version in oldest[name])
    }
    assert not wrong


def test_golden_the_newest_versions_are_named_for_everything_that_is_asked_for() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["test"], *extras["notebooks"], *extras["docs"]]
    assert not set(bounds(asked)) - set(pinned("constraints.txt"))


def test_golden_newer_pythons_have_the_newer_jax() -> None:
    text = (ROOT / "constraints.txt").read_text()
    for name in ("jax", "jaxlib"):
        older, newer = pinned("constraints.txt")[name]
        assert f'{name}=={older}; python_version < "3.12"' in text
        assert f'{name}=={newer}; python_version >= "3.12"' in text
        assert [int(part) for part in older.split(".")] < [int(part) for part in newer.split(".")]
