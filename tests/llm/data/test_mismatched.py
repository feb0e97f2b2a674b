"""Claims about responses to other prompts: they rotate within a batch, and are cut to the limit."""

from __future__ import annotations

import numpy as np
import pytest

from llm.data.mismatched import with_mismatched_responses
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens


def table(n: int) -> PairTable:
    return PairTable.from_pairs(
        PairTokens((9,) * (row + 1), (row,) * 4, (row,) * 4, None, 10 + row, desirable=row % 2 == 0)
        for row in range(n)
    )


def test_closed_form_responses_move_on_by_one_row_in_their_batch() -> None:
    rows = table(5)
    got = with_mismatched_responses(rows, [np.array([2, 0]), np.array([4, 1, 3])], max_length=6)
    assert [row.rejected[0] for row in got] == [2, 4, 0, 1, 3]
    assert [len(row.rejected) for row in got] == [4, 4, 3, 2, 1]
    assert [row._replace(rejected=row.chosen) for row in got] == list(rows)
    assert list(with_mismatched_responses(rows, [], max_length=9)) == list(rows)


def test_closed_form_unscored_tokens_go_with_their_response() -> None:
    mask = (False, True, False, True)
    rows = list(table(2))
    rows[1] = rows[1]._replace(scored=(mask, mask, None))
    got = with_mismatched_responses(PairTable.from_pairs(rows), [np.arange(2)], max_length=4)
    assert got[0].scored == (None, mask[:3], None)
    assert got[1].scored == (mask, None, None)


def test_raises_for_a_batch_of_one_row() -> None:
    with pytest.raises(ValueError, match=r"^a batch must have two rows or more .* row 12 alone$"):
        with_mismatched_responses(table(3), [np.arange(2), np.array([2])], max_length=9)
