"""A pytest plugin for runs in a copy of the checkout.

It shares compiled programs between runs and verifies that the mutated module came from the copy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import pytest

WRONG_MODULE = 70
"""Exit status of a run that did not import the mutated module from the copy."""


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Share compiled programs among runs: most programs of a mutant equal those of the others."""
    jax.config.update("jax_compilation_cache_dir", os.environ["MUTATION_COMPILED"])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["MUTATION_COMPILED"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Exit with ``WRONG_MODULE`` if the mutated module was not imported from the copy."""
    name = os.environ.get("MUTATION_MODULE")
    if name is None:
        return
    expected = Path.cwd() / f"{name.replace('.', '/')}.py"
    imported = getattr(sys.modules.get(name), "__file__", None)
    if imported is None or Path(imported).resolve() != expected.resolve():
        message = f"{name} was imported from {imported}, not {expected}"
        pytest.exit(message, returncode=WRONG_MODULE)
