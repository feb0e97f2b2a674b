"""Tokenized pairs in a few arrays, which take hardly more memory than their tokens.

In tuples of Python integers a token takes eight bytes, and a short pair hundreds of bytes besides.
Here a token takes four bytes and a pair sixty; its tuples are created on access.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int

from llm.types import Role

from .preferences import PairTokens

_N_PARTS = 1 + len(Role)
"""Prompt, chosen, rejected and baseline response, stored one after another."""


class PairTable(Sequence[PairTokens]):
    """An immutable sequence of tokenized pairs, stored as arrays.

    Attributes:
        lengths: number of tokens of prompt, chosen, rejected and baseline response, shape
            ``[n 4]``; the last is 0 if a pair has no baseline response.
        rows: index of the data row of each pair, shape ``[n]``.
        reference: reference log-probabilities of the responses, nats, shape ``[n 3]``; NaN if
            unknown.

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
        """Wrap arrays; see :meth:`from_pairs`.

        Args:
            tokens: the tokens of all pairs.
            starts: index in ``tokens`` where each pair begins.
            lengths: see the class.
            rows: see the class.
            reference: see the class.
        """
        self._tokens: Int[np.ndarray, " tokens"] = tokens
        self._starts: Int[np.ndarray, " n"] = starts
        self.lengths: Int[np.ndarray, "n 4"] = lengths
        self.rows: Int[np.ndarray, " n"] = rows
        self.reference: Float[np.ndarray, "n 3"] = reference

    @classmethod
    def from_pairs(cls, pairs: Iterable[PairTokens]) -> PairTable:
        """Store pairs in arrays.

        Args:
            pairs: tokenized pairs; an iterator is consumed one pair at a time.

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
        table = np.asarray(lengths).reshape(-1, _N_PARTS)
        sizes = table.sum(1, dtype=np.int64)
        return cls(
            np.asarray(tokens),
            np.cumsum(sizes) - sizes,
            table,
            np.asarray(rows).view(np.int64),
            np.asarray(reference).reshape(-1, len(Role)),
        )

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int | np.integer) -> PairTokens: ...
    @overload
    def __getitem__(self, index: slice) -> PairTable: ...
    def __getitem__(self, index: int | np.integer | slice) -> PairTokens | PairTable:
        """Return one pair, or the table of a slice."""
        if isinstance(index, slice):
            return self.select(index)
        return self._pair(
            self._starts[index].item(),
            self.lengths[index].tolist(),
            self.rows[index].item(),
            self.reference[index],
        )

    def __iter__(self) -> Iterator[PairTokens]:
        """Yield the pairs in order."""
        return (self[index] for index in range(len(self)))

    def select(self, indices: slice | Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]) -> PairTable:
        """Return a table of some of the pairs; the tokens are shared, not copied.

        Args:
            indices: a slice, indices, or a mask over all pairs.

        Returns:
            The table of the selected pairs.
        """
        return PairTable(
            self._tokens,
            self._starts[indices],
            self.lengths[indices],
            self.rows[indices],
            self.reference[indices],
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
    """Convert a sequence of pairs to a table, unless it is one.

    Args:
        pairs: tokenized pairs.

    Returns:
        The table.
    """
    return pairs if isinstance(pairs, PairTable) else PairTable.from_pairs(pairs)
