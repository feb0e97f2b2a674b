"""Every test runs in float64 with strict dtype promotion; all packages come from one place."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from rpo.cli import check_packages

check_packages()
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


MAX_MAPS = 30_000
"""Memory maps from which compiled programs are dropped: half of what Linux allows a process."""
COMPILED = {"jax_persistent_cache_min_compile_time_secs": 0.0}
OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"
"""Variable that chooses the compiler's settings: tests that are run with it set keep it."""
FAST_COMPILATION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Flags of XLA's smaller code generator, which compiles a solver in a quarter of the time."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for the tests, and their processes, that run the same ones again."""
    if OPTIMIZATIONS not in os.environ and "not slow" in config.option.markexpr:
        # Default tests compile more than they compute; slow tests have the settings of users.
        os.environ |= {OPTIMIZATIONS: "1", "XLA_FLAGS": FAST_COMPILATION}
        jax.config.update(OPTIMIZATIONS.lower(), True)
    folder = tempfile.TemporaryDirectory(prefix="compiled")
    config.add_cleanup(folder.cleanup)
    for name, value in {"jax_compilation_cache_dir": folder.name, **COMPILED}.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_finish() -> None:
    """Exempt everything that is imported by now from later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def float64_with_strict_promotion() -> Iterator[None]:
    """The theory inherits its inputs' dtype; its tests run in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_go_before_memory_maps_run_out() -> Iterator[None]:
    """Each program holds memory maps; beyond the limit of a process, compilation crashes."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > MAX_MAPS:
        jax.clear_caches()


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real preference data; the test is skipped in a clone that lacks it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real preference data in ../shared/data, absent here")
    return SHARED_DATA
