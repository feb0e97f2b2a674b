"""Pairs of tokens in a few arrays: a million of them take hardly more than their tokens.

As tuples of Python's integers a token takes eight bytes and a short pair hundreds besides; here a
token takes four, and a pair sixty. A pair is made of them when it is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int

from llm.types import Role

from .preferences import PairTokens

SEQUENCES = 1 + len(Role)
"""Token sequences of a pair, stored one after another: the prompt, then a response per role."""


class PairTable(Sequence[PairTokens]):
    """A sequence of pairs, kept as arrays.

    Attributes:
        lengths: tokens of prompt, chosen, rejected and baseline response, the last 0 where there is
            none, shape ``[n 4]``.
        rows: numbers of the data rows, shape ``[n]``.
        reference: reference log-probabilities of the responses, nats; nan where there are none,
            shape ``[n 3]``.

    Examples:
        >>> table = PairTable.from_pairs([PairTokens((1, 2), (3,), (4, 5), None, 7)])
        >>> table[0].rejected
        (4, 5)
        >>> table.lengths.tolist()
        [[2, 1, 2, 0]]
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " tokens"],
        starts: Int[np.ndarray, " n"],
        lengths: Int[np.ndarray, "n 4"],
        rows: Int[np.ndarray, " n"],
        reference: Float[np.ndarray, "n 3"],
    ) -> None:
        """Of all tokens, where each pair's begin, and what is told of each pair."""
        self._tokens, self._starts = tokens, starts
        self.lengths, self.rows, self.reference = lengths, rows, reference

    @classmethod
    def from_pairs(cls, pairs: Iterable[PairTokens]) -> PairTable:
        """Keep pairs, one after another.

        Args:
            pairs: the pairs; of an iterator, one at a time is in memory.

        Returns:
            The table.
        """
        tokens, lengths, rows, reference = array("i"), array("i"), array("q"), array("d")
        for pair in pairs:
            for part in (pair.prompt, pair.chosen, pair.rejected, pair.baseline or ()):
                tokens.extend(part)
                lengths.append(len(part))
            rows.append(pair.row)
            known = pair.reference or ()
            reference.extend((*known, *[np.nan] * (len(Role) - len(known))))
        table = np.asarray(lengths).reshape(-1, SEQUENCES)
        sizes = table.sum(1, dtype=np.int64)
        return cls(
            np.asarray(tokens),
            np.cumsum(sizes) - sizes,
            table,
            np.asarray(rows).view(np.int64),
            np.asarray(reference).reshape(-1, len(Role)),
        )

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.rows)

    @overload
    def __getitem__(self, place: int | np.integer) -> PairTokens: ...
    @overload
    def __getitem__(self, place: slice) -> PairTable: ...
    def __getitem__(self, place: int | np.integer | slice) -> PairTokens | PairTable:
        """A pair as tuples, or the table of a slice."""
        if isinstance(place, slice):
            return self.select(place)
        return self._pair(
            self._starts[place].item(),
            self.lengths[place].tolist(),
            self.rows[place].item(),
            self.reference[place],
        )

    def __iter__(self) -> Iterator[PairTokens]:
        """One pair after another."""
        return (self[place] for place in range(len(self)))

    def select(self, places: slice | Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> PairTable:
        """Some of the pairs; the tokens stay where they are.

        Args:
            places: a slice, places, or whether each is among them.

        Returns:
            Their table.
        """
        return PairTable(
            self._tokens,
            self._starts[places],
            self.lengths[places],
            self.rows[places],
            self.reference[places],
        )

    def _pair(
        self, start: int, lengths: list[int], row: int, reference: Float[np.ndarray, " 3"]
    ) -> PairTokens:
        parts = []
        for length in lengths:
            parts.append(tuple(self._tokens[start : start + length].tolist()))
            start += length
        prompt, chosen, rejected, baseline = parts
        known = tuple(reference[~np.isnan(reference)].tolist())
        return PairTokens(prompt, chosen, rejected, baseline or None, row, known or None)


def as_pair_table(pairs: Sequence[PairTokens]) -> PairTable:
    """A sequence of pairs as a table, if it is not one.

    Args:
        pairs: the pairs.

    Returns:
        The table.
    """
    return pairs if isinstance(pairs, PairTable) else PairTable.from_pairs(pairs)
