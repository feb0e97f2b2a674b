r"""Responses to other prompts of the same step, from which KTO estimates its reference point.

KTO measures a response against :math:`KL(\pi\|\pi_{ref})`, estimated on pairs of a prompt and the
response of another row of the batch. As in TRL, the responses of a batch move on by one row:
:math:`(x_1, y_n), (x_2, y_1), \dots, (x_n, y_{n-1})`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from .pair_table import PairTable
from .preferences import PairTokens


def with_mismatched_responses(
    rows: PairTable, groups: Sequence[Int[np.ndarray, " _"]], *, max_length: int
) -> PairTable:
    """Give every unpaired row the response of the row before it in its group.

    Args:
        rows: tokenized unpaired rows.
        groups: indices of the rows of each batch; the first row of a batch gets the response of its
            last one. A row is in one group; a row in none keeps its own response.
        max_length: largest number of tokens of prompt and response; a longer one loses its end.

    Returns:
        The rows, whose ``rejected`` is the response to another prompt.

    Raises:
        ValueError: if a group has a single row.

    Examples:
        >>> rows = [PairTokens((1,), (i,), (i,), None, i, desirable=True) for i in range(3)]
        >>> group = np.arange(3)
        >>> table = with_mismatched_responses(PairTable.from_pairs(rows), [group], max_length=4)
        >>> [row.rejected for row in table]
        [(2,), (0,), (1,)]
    """
    others = np.arange(len(rows))
    for group in groups:
        if len(group) == 1:
            raise ValueError(
                f"a batch must have two rows or more to pair prompts with other responses, got "
                f"row {rows.rows[group[0]]} alone"
            )
        others[group] = np.roll(group, 1)
    return PairTable.from_pairs(
        _with_response(row, rows[other], max_length)
        for row, other in zip(rows, others.tolist(), strict=True)
    )


def _with_response(row: PairTokens, other: PairTokens, max_length: int) -> PairTokens:
    limit = max_length - len(row.prompt)
    mask_of_row, mask = (None if each.scored is None else each.scored[0] for each in (row, other))
    if mask is not None:
        mask = mask[:limit]
    scored = None if mask_of_row is None and mask is None else (mask_of_row, mask, None)
    return row._replace(rejected=other.chosen[:limit], scored=scored)
