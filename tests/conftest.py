"""Every test runs in float64 with strict dtype promotion; all packages come from one place."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest
from matplotlib.figure import Figure

from rpo.cli import check_packages
from rpo.runtime.compilation import READ_XLA_FLAGS
from tests.fake_gcs import FakeGcs

if TYPE_CHECKING:
    from tests.fake_s3 import FakeS3

check_packages()
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


MAX_MAPS = 30_000
"""Memory maps from which compiled programs are dropped: half of what Linux allows a process."""
COMPILED = {"jax_persistent_cache_min_compile_time_secs": 0.0}
OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"
"""Variable by which the tests choose how JAX compiles, unless it is set already."""
FAST_COMPILATION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Flags of XLA's older code generator, which compiles a solver in half of the time."""


def compile_fast() -> None:
    """Compile with few optimizations, here and in worker processes: rounding differs, no claim."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION}".strip()
    os.environ[OPTIMIZATIONS] = "1"
    jax.config.update(OPTIMIZATIONS.lower(), True)
    # A flag that this version of XLA does not know would end the process.
    command = [sys.executable, "-c", READ_XLA_FLAGS]
    known = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = flags


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for the tests, and their processes, that run the same ones again."""
    # Default tests compile more than they compute; slow tests have the settings of users.
    if OPTIMIZATIONS not in os.environ and "not slow" in config.option.markexpr:
        compile_fast()
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let started processes obey SIGINT, which a shell has jobs in the background ignore."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[FakeGcs]:
    """One fake Google Cloud Storage for all tests: etils keeps the first address of a process."""
    server = FakeGcs()
    yield server
    server.stop()


@pytest.fixture
def gcs(gcs_server: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> FakeGcs:
    """A fake Google Cloud Storage with an empty bucket ``bucket``; this process talks to it."""
    gcs_server.reset()
    for name, value in gcs_server.environment().items():
        monkeypatch.setenv(name, value)
    return gcs_server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FakeS3]:
    """One S3 server of moto for all tests, which takes a second to start."""
    from tests.fake_s3 import FakeS3

    server = FakeS3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: FakeS3, monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    """A fake S3 with an empty bucket ``bucket``; this process talks to it."""
    s3_server.reset()
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def text_faults() -> Callable[[Figure], list[str]]:
    """Return a function that lists the texts of a figure that touch, are cut off, or are small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    def faults(figure: Figure) -> list[str]:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes = [ax for ax in figure.axes if ax.get_visible()]
        hidden = set()
        for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if axis.axes not in axes or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
        written = [
            text
            for text in figure.findobj(Text)
            if text.get_visible()
            and text.get_text().strip()
            and text not in hidden
            and (text.axes is None or text.axes in axes)
        ]
        inside = figure.bbox.padded(1.0)
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in written]
        found = []
        for index, (text, box) in enumerate(zip(written, boxes, strict=True)):
            if float(text.get_fontsize()) < 8.0:
                found.append(f"small: {text.get_text()}")
            if not (inside.x0 <= box.x0 and box.x1 <= inside.x1):
                found.append(f"wide: {text.get_text()}")
            if not (inside.y0 <= box.y0 and box.y1 <= inside.y1):
                found.append(f"high: {text.get_text()}")
            touching = (o for o, b in zip(written[:index], boxes, strict=False) if box.overlaps(b))
            found += [f"touching: {text.get_text()} / {other.get_text()}" for other in touching]
        return found

    return faults
