"""A small process that reports if the process beside it is lost.

When one process of a group dies, collective operations fail in the others, or JAX aborts them
from a thread of its own, before they can report anything. Each process therefore starts a watcher,
which reports the loss if its pipe closes without a sign-off.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpo_io.bucket_paths import AnyPath

CLEAN_EXIT = b"done"
"""Bytes that a process sends to its watcher before it ends in good order."""


def start_watcher(folder: AnyPath | None) -> Callable[[], object]:
    """Start the watcher of the present process.

    Args:
        folder: output folder of a command that can be resumed; None for another command.

    Returns:
        The function that signs off, before the process ends in good order.
    """
    command = [sys.executable, "-m", "rpo.runtime.watcher", *([str(folder)] if folder else [])]
    # In a session of its own, an interrupt from the keyboard does not reach the watcher.
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    return partial(watcher.communicate, CLEAN_EXIT)


def lost_process_message(folder: AnyPath | None) -> str:
    """Return the line that is printed when a process of a group was killed.

    Args:
        folder: output folder of a command that can be resumed; None for another command.

    Returns:
        One line that says from where the run can be resumed.

    Examples:
        >>> lost_process_message(None)[-36:-1]
        'have ended, start all of them again'
    """
    remedy = "again"
    if folder is not None:
        # Of a bucket that may be out of reach, nothing is asked here.
        local = (folder / "checkpoints").glob("*") if isinstance(folder, Path) else ()
        steps = [int(path.name) for path in local if path.name.isdigit()]
        if steps:
            remedy += f" with --resume: they continue from the checkpoint of step {max(steps)}"
        else:
            remedy += f", with --resume if {folder} already holds results"
    return (
        "rpo: error: a process of this run ended unexpectedly, and the others cannot continue "
        f"without it: when all have ended, start all of them {remedy}\n"
    )


if __name__ == "__main__":
    from rpo_io.bucket_paths import as_path

    if sys.stdin.buffer.read() != CLEAN_EXIT:
        sys.stderr.write(lost_process_message(as_path(sys.argv[1]) if sys.argv[1:] else None))
