"""Steps of a study: tables that are computed one after the other, and may be kept.

A study that takes minutes computes its records in steps. Whoever runs it can store the table of
each step and give it back after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa

KeepStep: TypeAlias = Callable[[int, Callable[[], Any]], Any]
"""Returns the PyArrow table of a step, given its number and the function that computes it."""


def compute_step(number: int, step: Callable[[], pa.Table]) -> pa.Table:
    """Compute the table of a step without keeping it.

    Args:
        number: number of the step, from 0; a study always has the same steps in the same order.
        step: function that computes the table.

    Returns:
        The table.

    Examples:
        >>> compute_step(0, lambda: pa.table({"gap": [0.5]})).num_rows
        1
    """
    del number
    return step()
