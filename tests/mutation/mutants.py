"""The mutants: one fault each in a formula or mask, and the tests that must fail with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

FOLDER = Path(__file__).resolve().parent
CHECKOUT = FOLDER.parents[1]
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
"""Packages with mutants; the file ``PACKAGE.yaml`` lists them."""


class Mutant(NamedTuple):
    """A fault in one module.

    Attributes:
        name: what is wrong, in words.
        file: path of the module, relative to the root of the checkout.
        old: text that occurs exactly once in the file.
        new: text that replaces it.
        tests: node IDs of pytest; at least one of them must fail.
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
        """Return the text of the file with the fault in it.

        Raises:
            ValueError: if the old text does not occur exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.name}: {self.file} must contain {self.old!r} once, not {count} times"
            )
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """Return all mutants, in the order of their files."""
    return [mutant for package in PACKAGES for mutant in _read(FOLDER / f"{package}.yaml")]


def _read(path: Path) -> list[Mutant]:
    """Read one file, which maps each module to the list of its mutants."""
    modules = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutant(entry["name"], file, entry["old"], entry["new"], tuple(entry["tests"].split()))
        for file, entries in modules.items()
        for entry in entries
    ]
