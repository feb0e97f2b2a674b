"""Peak resident memory of this process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory() -> int:
    """Return the peak in bytes; on Linux ``ru_maxrss`` would include the parent process."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def reset_peak() -> None:
    """Reset the peak to the memory held now, on systems that support it."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


@contextmanager
def growth_below(limit: int) -> Iterator[None]:
    """Check that the peak grows by less than ``limit`` bytes inside the block."""
    reset_peak()
    before = peak_memory()
    yield
    assert peak_memory() - before < limit
