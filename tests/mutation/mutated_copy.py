"""Plugin of pytest for runs in a copy of the checkout: what is imported, and compiled once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import pytest

ELSEWHERE = 70
"""Exit status of a run that did not import the module from the copy."""


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Share compiled programs among runs: most of a mutant's programs are those of the others."""
    jax.config.update("jax_compilation_cache_dir", os.environ["MUTATION_COMPILED"])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["MUTATION_COMPILED"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """End with a status of its own where the mutated module is not that of the copy."""
    name = os.environ.get("MUTATION_MODULE")
    if name is None:
        return
    expected = Path.cwd() / f"{name.replace('.', '/')}.py"
    found = getattr(sys.modules.get(name), "__file__", None)
    if found is None or Path(found).resolve() != expected.resolve():
        pytest.exit(f"{name} was imported from {found}, not {expected}", returncode=ELSEWHERE)
