"""Check of the reference log-probabilities that the data rows hold.

A wrong value trains another objective, and in the mean over a step two errors can cancel. The
reference model is there, so the values are compared row by row with what it computes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from llm.data.preferences import REFERENCE_FIELDS
from llm.types import Role

from .reference_cache import (
    ReferenceCache,
    cache_from_rows,
    compute_reference,
)
from .row_locations import row_location
from .scorer import Scorer

SAMPLE_ROWS = 256
"""Largest number of rows that are compared besides those of the first step."""


def check_given_reference(
    run: Scorer, *, tolerance: float, name: str = "the initial model"
) -> None:
    """Compare given reference log-probabilities with those of the reference model.

    The rows of the first step and an even sample of all rows are compared, each response by itself.

    Args:
        run: the reference model: a run before its first step, or another model on its devices.
        tolerance: largest error, relative to the log-probability if that exceeds one nat.
        name: noun phrase for the model, for the message.

    Raises:
        ValueError: if a value is off; the message names file, line and column of the first one.
    """
    if not run.config.objective.needs_reference:
        return
    pairs = run.visited_pairs()
    given = cache_from_rows(pairs, run.sampler.n_roles)
    if given is None:
        return
    first_step = run.data.train.rows[run.sampler.pair_indices(0)]
    compared = np.union1d(sample_rows(given.row_ids), np.intersect1d(given.row_ids, first_step))
    chosen = pairs.select(np.isin(pairs.rows, compared))
    computed = compute_reference(run.log_probs, run.batches_in_order(chosen))
    off = first_difference(given, computed, tolerance=tolerance)
    if off is None:
        return
    row, role, value, expected = off
    where = row_location(run.config.data, row, n_train_rows=run.data.report["rows"])
    field = REFERENCE_FIELDS[role]
    raise ValueError(
        f"{where}: field `{field}` must be the log-probability of the "
        f"{role.name.lower()} response under {name}, {expected:.4f} nats, got "
        f"{value:.4f} (`trainer.step0_tolerance` is {tolerance:g}): compute it again with "
        f"`rpo score`, whose `{role.name.lower()}_logp` is the value of `{field}`, or leave the "
        "reference columns out"
    )


def sample_rows(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Select at most :data:`SAMPLE_ROWS` rows, evenly spaced, with the first and the last.

    Args:
        rows: row indices in increasing order.

    Returns:
        The selected row indices.

    Examples:
        >>> sample_rows(np.arange(1000))[[0, 1, -1]].tolist()
        [0, 3, 999]
    """
    count = min(len(rows), SAMPLE_ROWS)
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def first_difference(
    given: ReferenceCache, computed: ReferenceCache, *, tolerance: float
) -> tuple[int, Role, float, float] | None:
    """Find the first value that differs.

    Args:
        given: given log-probabilities; every row of ``computed`` is among them.
        computed: log-probabilities of the initial policy.
        tolerance: see :func:`check_given_reference`.

    Returns:
        Row, response, given and computed log-probability; None if all values agree.

    Examples:
        >>> rows = np.array([3, 5])
        >>> given = ReferenceCache(rows, np.array([[-1.0, -2.0], [-4.0, -3.0]]))
        >>> computed = ReferenceCache(rows, np.array([[-1.0, -2.0], [-3.0, -4.0]]))
        >>> first_difference(given, computed, tolerance=1e-3)[:2]
        (5, <Role.CHOSEN: 0>)
    """
    values = given.log_probs[np.searchsorted(given.row_ids, computed.row_ids)]
    exact = np.asarray(computed.log_probs, np.float64)
    off = np.abs(values - exact) > tolerance * np.maximum(1.0, np.abs(exact))
    if not off.any():
        return None
    index, role = np.argwhere(off)[0].tolist()
    row = int(computed.row_ids[index])
    return row, Role(role), float(values[index, role]), float(exact[index, role])
