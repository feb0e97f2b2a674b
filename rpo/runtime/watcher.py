"""Says what to do when a process of several is ended from outside, which it cannot say itself.

Where one of several processes is gone, exchanges fail in the others, or JAX aborts them from a
thread of its own. So a small process waits beside each, and speaks if its pipe is closed without a
farewell.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

FAREWELL = b"done"


def watch(folder: Path) -> Callable[[], object]:
    """Have the present process watched.

    Args:
        folder: of the run.

    Returns:
        A function that tells the watcher that the process leaves in good order.
    """
    command = [sys.executable, "-m", "rpo.runtime.watcher", str(folder)]
    # In a session of its own, an interrupt from the keyboard does not reach it.
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    return partial(watcher.communicate, FAREWELL)


def last_words(folder: Path) -> str:
    """What a person should know when a process of a run is gone.

    Args:
        folder: of the run.

    Returns:
        One line.
    """
    steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    if steps:
        rest = f"again with --resume: they go on from step {max(steps)}, the last whole checkpoint"
    else:
        rest = f"again, with --resume if {folder} holds something of it"
    return (
        "rpo: error: a process of this run is gone, and the others cannot go on without it: when "
        f"all have ended, start all of them {rest}\n"
    )


if __name__ == "__main__":
    if sys.stdin.buffer.read() != FAREWELL:
        sys.stderr.write(last_words(Path(sys.argv[1])))
