"""Folders that all processes of a group write into, and that appear when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np

from rpo_io.atomic import atomic_folder

LONGEST_PATH = 4096
"""Bytes of the longest path of a file system."""


@contextmanager
def shared_atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to all processes, and rename it when all have left the block.

    Args:
        folder: final path, which all processes see; see :func:`rpo_io.atomic.atomic_folder`.

    Yields:
        The temporary folder, the same in all processes.

    Raises:
        OSError: if the folder cannot be written or renamed.

    Examples:
        >>> with shared_atomic_folder(Path("policy")) as part:  # doctest: +SKIP
        ...     (part / "config.json").write_text("{}")
    """
    if jax.process_count() == 1:
        with atomic_folder(folder) as part:
            yield part
        return
    from jax.experimental import multihost_utils

    with ExitStack() as stack:
        name = b""
        if jax.process_index() == 0:
            name = bytes(stack.enter_context(atomic_folder(folder)))
        sent = np.frombuffer(name.ljust(LONGEST_PATH, b"\0"), np.uint8)
        received = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)
        yield Path(received.tobytes().rstrip(b"\0").decode())
        multihost_utils.sync_global_devices("all files of a folder are written")
    multihost_utils.sync_global_devices("a folder is renamed")
