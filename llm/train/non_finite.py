"""A number of a run is NaN or infinite: the run ends and says where it came up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from llm.types import Batch

from .checkpoint import Checkpoints

NAMED_ROWS = 16
"""Rows that an error names; of more it says how many."""


class NonFiniteError(ValueError):
    """A log-probability, loss, gradient or parameter is not finite."""


def refuse_what_is_not_finite(
    measured: Mapping[str, float],
    flags: np.ndarray,
    batch: Batch,
    step: int,
    checkpoints: Checkpoints,
) -> None:
    """End a run whose step has gone wrong, before its update counts.

    Args:
        measured: metrics of the step.
        flags: which pairs of the batch are not finite.
        batch: of the step.
        step: its number, from 0.
        checkpoints: of the run.

    Raises:
        NonFiniteError: a metric or a pair is not finite; it names the pairs' rows, all rows of the
            step where only a sum over them overflows.
    """
    wrong = [name for name, value in measured.items() if not np.isfinite(value)]
    if flags.any():
        raise not_finite(rows_of(batch, flags), batch, step, checkpoints)
    if wrong:
        raise not_finite(f"`{wrong[0]}`", batch, step, checkpoints)


def not_finite(where: str, batch: Batch, step: int, checkpoints: Checkpoints) -> NonFiniteError:
    """What to raise for a step, numbered from 0."""
    of = "" if where.startswith("rows") else f" of the step on {rows_of(batch, batch.present)}"
    return NonFiniteError(f"step {step + 1}: not finite in {where}{of}; {last_good(checkpoints)}")


def last_good(checkpoints: Checkpoints) -> str:
    """The checkpoint to go back to, in words."""
    last = checkpoints.latest()
    return "no checkpoint yet" if last is None else f"the last good checkpoint is step {last}"


def rows_of(batch: Batch, which: ArrayLike, first: int = 0) -> str:
    """Numbers of some rows of a batch less that of the first of their file, in words."""
    rows = sorted({int(row) - first for row in np.asarray(batch.row_ids)[np.asarray(which)]})
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"rows {', '.join(map(str, rows[:NAMED_ROWS]))}{more}"
