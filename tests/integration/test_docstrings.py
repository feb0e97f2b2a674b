"""Every example in a docstring of the libraries, run in float64."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandits
import llm
import rpo_theory

NAMES = sorted(
    module.name
    for package in (rpo_theory, bandits, llm)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)
NAMESPACE = {"jax": jax, "jnp": jnp, "np": np}
"""What the examples use beside the names of their own module."""


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=NAMESPACE)


@pytest.mark.parametrize("name", NAMES)
def test_golden_examples_print_what_they_say(name: str) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for example in examples(importlib.import_module(name)):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
