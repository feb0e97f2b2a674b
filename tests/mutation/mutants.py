"""The mutants: faults of one formula or mask each, and the tests that must see them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

FOLDER = Path(__file__).resolve().parent
CHECKOUT = FOLDER.parents[1]
LISTS = ("rpo_theory", "bandits", "llm")
"""Packages that have mutants, each in a file of its own."""


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        name: says what is wrong.
        file: from the root of the checkout, of a module.
        old: text that occurs exactly once in the file.
        new: what takes its place.
        tests: node ids of pytest, of which one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return self.file.removesuffix(".py").replace("/", ".")

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} must hold {self.old!r} once, not {count}x")
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """All mutants, in the order of their lists."""
    return [mutant for package in LISTS for mutant in _read(FOLDER / f"{package}.yaml")]


def _read(path: Path) -> list[Mutant]:
    """A list maps each module to its mutants; tests are named from the folder of the package."""
    modules = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutant(one["name"], file, one["old"], one["new"], tuple(one["tests"].split()))
        for file, listed in modules.items()
        for one in listed
    ]
