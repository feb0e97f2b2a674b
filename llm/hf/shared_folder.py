"""Folders that all processes of a group write into, and that appear when they are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np

from rpo_io.atomic import atomic_folder
from rpo_io.bucket_paths import AnyPath, BucketPath

LONGEST_PATH = 4096
"""Bytes of the longest path of a file system."""


@contextmanager
def shared_atomic_folder(folder: AnyPath, *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder to all processes, and rename it when all have left the block.

    For a bucket each process has a temporary folder of its own. All upload what they wrote, and
    process 0 does so last.

    Args:
        folder: final path, which all processes see; see :func:`rpo_io.atomic.atomic_folder`.
        last: names of files of process 0 without which the folder is not read; in a bucket they
            appear last.

    Yields:
        The temporary folder, the same in all processes unless it is for a bucket.

    Raises:
        OSError: if the folder cannot be written or renamed.

    Examples:
        >>> with shared_atomic_folder(Path("policy")) as part:  # doctest: +SKIP
        ...     (part / "config.json").write_text("{}")
    """
    if jax.process_count() == 1:
        with atomic_folder(folder, last=last) as part:
            yield part
        return
    from jax.experimental import multihost_utils

    is_first = jax.process_index() == 0
    written = "all files of a folder are written"
    with ExitStack() as stack:
        if isinstance(folder, BucketPath):
            yield stack.enter_context(atomic_folder(folder, last=last))
            if not is_first:
                stack.close()
        else:
            name = bytes(stack.enter_context(atomic_folder(folder))) if is_first else b""
            sent = np.frombuffer(name.ljust(LONGEST_PATH, b"\0"), np.uint8)
            received = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)
            yield Path(received.tobytes().rstrip(b"\0").decode())
        multihost_utils.sync_global_devices(written)
    multihost_utils.sync_global_devices("a folder is complete")
