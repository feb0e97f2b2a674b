"""Threads of the compiled kernels, which release Python's lock: one task per slice of the rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")


def map_rows(function: Callable[[slice], Part], n_rows: int, size: int) -> list[Part]:
    """Apply a function to consecutive slices of a batch, on as many threads as there are cores.

    Args:
        function: function of the rows of a slice; no result may depend on another slice.
        n_rows: number of rows.
        size: number of rows of a slice, at least 1; the last slice may have fewer.

    Returns:
        The results in order.

    Examples:
        >>> map_rows(lambda rows: (rows.start, rows.stop), 5, 2)
        [(0, 2), (2, 4), (4, 5)]
    """
    slices = [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    n_threads = min(len(slices), os.cpu_count() or 1)
    if n_threads <= 1:
        return list(map(function, slices))
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(function, slices))
