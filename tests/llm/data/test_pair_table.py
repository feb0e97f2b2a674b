"""Claims about pairs stored as arrays: nothing is lost, and they take little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.labels import PairLabel
from llm.data.pair_table import PairTable, as_pair_table
from llm.data.preferences import PairTokens

tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
log_probs = st.floats(-1e300, 0.0)


@st.composite
def masks(draw: st.DrawFn, pair: PairTokens) -> PairTokens:
    """Leave some tokens of some responses of a pair unscored."""
    scored = [
        draw(st.none() | st.tuples(*[st.booleans()] * len(part)).filter(lambda mask: not all(mask)))
        for part in (pair.chosen, pair.rejected, pair.baseline or ())
        if part
    ]
    scored += [None] * (3 - len(scored))
    return pair._replace(scored=tuple(scored) if any(scored) else None)


pairs = st.builds(
    PairTokens,
    tokens,
    tokens,
    tokens,
    st.none() | tokens,
    st.integers(0, 2**62),
    st.none() | st.lists(log_probs, min_size=2, max_size=3).map(tuple),
    st.none(),
    st.builds(PairLabel, st.floats(0.0, 9.0), st.floats(0.0, 1.0)),
    st.none(),
    st.none(),
).flatmap(masks)


@settings(max_examples=50, deadline=None)
@given(st.lists(pairs, max_size=8), st.integers(-9, 9), st.integers(-9, 9))
def test_roundtrip_a_table_returns_the_pairs_it_was_made_of(
    rows: list[PairTokens], a: int, b: int
) -> None:
    table = PairTable.from_pairs(iter(rows))
    assert len(table) == len(rows)
    assert list(table) == rows
    assert list(table[a:b]) == rows[a:b]
    assert [table[index] for index in range(-len(rows), 0)] == rows
    counts = [
        [
            sum(mask) if mask else len(part or ())
            for part, mask in zip(row[1:4], row.scored or [None] * 3, strict=True)
        ]
        for row in rows
    ]
    assert table[a:b].scored_lengths.tolist() == counts[a:b]
    assert as_pair_table(table) is table
    assert list(as_pair_table(rows)) == rows


def test_roundtrip_unpaired_rows_and_labels_survive_tables_and_their_concatenation() -> None:
    label = PairLabel(2.0, 0.5)
    pair = PairTokens((1,), (2,), (3,), None, 0, label=label)
    plain = pair._replace(label=PairLabel(), row=1)
    tables = [PairTable.from_pairs([each]) for each in (plain, pair, plain)]
    assert list(PairTable.concatenate(tables)) == [plain, pair, plain]
    rows = [pair._replace(desirable=value, row=row) for row, value in enumerate((True, False))]
    tables = [PairTable.from_pairs([row]) for row in rows]
    table = PairTable.concatenate(tables)
    assert list(table) == rows
    assert list(table.select(np.array([1]))) == rows[1:]
    others = [row._replace(desirable=True) for row in rows]
    assert table.digest not in {PairTable.from_pairs(each).digest for each in (others, [pair] * 2)}
    with pytest.raises(ValueError, match=r"got 1 unpaired rows among 2$"):
        PairTable.from_pairs([pair, rows[0]])


def test_closed_form_indices_and_masks_select_pairs_in_order() -> None:
    rows = [PairTokens((row,) * (row + 1), (1,), (2,), None, 10 * row) for row in range(5)]
    table = PairTable.from_pairs(rows)
    assert list(table.select(np.array([3, 0]))) == [rows[3], rows[0]]
    assert list(table.select(table.rows > 20)) == rows[3:]
    assert list(table.select(np.array([4, 1])).select(np.array([1]))) == [rows[1]]


def test_closed_form_arrays_hold_lengths_rows_and_reference_of_the_pairs() -> None:
    pair = PairTokens((1, 2, 3), (4,), (5, 6), None, 7, (-1.0, -2.0))
    table = PairTable.from_pairs([pair, pair._replace(baseline=(8,), reference=None, row=9)])
    assert table.lengths.tolist() == [[3, 1, 2, 0], [3, 1, 2, 1]]
    assert table.rows.tolist() == [7, 9]
    np.testing.assert_array_equal(table.reference, [[-1.0, -2.0, np.nan], [np.nan] * 3])


def test_property_the_digest_depends_only_on_rows_tokens_and_scored_tokens() -> None:
    pair = PairTokens((1, 2, 3), (4,), (5, 6), None, 7, (-1.0, -2.0))
    other = pair._replace(row=8)
    table = PairTable.from_pairs([pair, other])
    same = PairTable.from_pairs([pair._replace(reference=None), other])
    assert table.digest == same.digest  # the reference is what the digest is compared for
    selected = PairTable.from_pairs([other, pair, other]).select(np.array([1, 2]))
    assert selected.digest == table.digest
    changed = (
        pair._replace(row=9),
        pair._replace(chosen=(5,)),
        pair._replace(prompt=(1, 2), chosen=(3, 4)),  # the same tokens, divided differently
        pair._replace(scored=(None, (True, False), None)),
        pair._replace(baseline=(4,)),
    )
    digests = {PairTable.from_pairs([one, other]).digest for one in (pair, *changed)}
    assert len(digests) == 1 + len(changed)
    assert PairTable.from_pairs([]).digest != table.digest


def test_raises_for_a_mask_of_another_length() -> None:
    pair = PairTokens((1,), (2, 3), (4,), None, 0, scored=((True,), None, None))
    with pytest.raises(ValueError, match=r"one entry for each of 2 tokens, got 1$"):
        PairTable.from_pairs([pair])
    absent = pair._replace(scored=(None, None, (False, True)))
    assert PairTable.from_pairs([absent])[0].scored is None


def test_extreme_a_pair_takes_little_more_memory_than_its_tokens() -> None:
    """A token takes 4 bytes and a pair 60, plus the spare capacity of growing arrays."""
    count, size = 20_000, 30
    tracemalloc.start()
    table = PairTable.from_pairs(
        PairTokens((row,) * 10, (row,) * 10, (row,) * 10, None, row) for row in range(count)
    )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == count
    assert held < 1.25 * count * (4 * size + 60)
