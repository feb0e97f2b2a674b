"""The most memory that this process has held."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
FORGET = Path("/proc/self/clear_refs")


def peak_memory() -> int:
    """Bytes; ``ru_maxrss`` on Linux would count the process that started this one, too."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """The peak is what is held now, where the system can forget."""
    if FORGET.exists():
        FORGET.write_text("5")
