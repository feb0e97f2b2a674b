"""Every example in a docstring of the packages, run in float64."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
NAMES = sorted(
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    if module.name != "rpo.__main__"
)
NAMESPACE = {"jax": jax, "jnp": jnp, "np": np}
"""Names that examples use beside those of their module."""


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=NAMESPACE)


@pytest.mark.parametrize("name", [*PACKAGES, *NAMES])
def test_golden_examples_print_what_they_show(name: str) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for example in examples(importlib.import_module(name)):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
