"""Tokenized pairs in a few arrays, which take hardly more memory than their tokens.

In tuples of Python integers a token takes eight bytes, and a short pair hundreds of bytes besides.
Here a token takes four bytes and a pair sixty; its tuples are created on access. If some response
has tokens that are not scored, every token takes one byte more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from llm.types import Role
from rpo_io.digests import sha256_of_chunks

from .labels import PairLabel
from .preferences import PairTokens, ScoredTokens


class PairTable(Sequence[PairTokens]):
    """An immutable sequence of tokenized pairs, stored as arrays.

    Attributes:
        lengths: number of tokens of prompt, chosen, rejected and baseline response, shape
            ``[n 4]``; the last is 0 if a pair has no baseline response. For ranked rows, number of
            tokens of the prompt and of each response from best to worst, 0 for those that a row
            lacks.
        rows: index of the data row of each pair, shape ``[n]``.
        reference: reference log-probabilities of the responses, nats, one column fewer than
            ``lengths``; NaN if unknown.
        labels: weight of each pair and probability that its chosen response is the better one,
            shape ``[n 2]``; None if all are 1.
        desirable: whether the response of each unpaired row is desirable, shape ``[n]``; None for
            pairs.
        is_ranked: whether the rows are ranked.

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
        lengths: Int[np.ndarray, "n parts"],
        rows: Int[np.ndarray, " n"],
        reference: Float[np.ndarray, "n k"],
        scored: Bool[np.ndarray, " tokens"] | None = None,
        labels: Float[np.ndarray, "n 2"] | None = None,
        desirable: Bool[np.ndarray, " n"] | None = None,
        is_ranked: bool = False,
    ) -> None:
        """Wrap arrays; see :meth:`from_pairs`.

        Args:
            tokens: the tokens of all pairs.
            starts: index in ``tokens`` where each pair begins.
            lengths: see the class.
            rows: see the class.
            reference: see the class.
            scored: whether each of ``tokens`` is scored; None if all tokens of responses are.
            labels: see the class.
            desirable: see the class.
            is_ranked: see the class.
        """
        self._tokens: Int[np.ndarray, " tokens"] = tokens
        self._starts: Int[np.ndarray, " n"] = starts
        self.lengths: Int[np.ndarray, "n parts"] = lengths
        self.rows: Int[np.ndarray, " n"] = rows
        self.reference: Float[np.ndarray, "n k"] = reference
        self._scored: Bool[np.ndarray, " tokens"] | None = scored
        self.labels: Float[np.ndarray, "n 2"] | None = labels
        self.desirable: Bool[np.ndarray, " n"] | None = desirable
        self.is_ranked: bool = is_ranked

    @classmethod
    def from_pairs(cls, pairs: Iterable[PairTokens]) -> PairTable:
        """Store pairs in arrays.

        Args:
            pairs: tokenized pairs; an iterator is consumed one pair at a time.

        Returns:
            The table.

        Raises:
            ValueError: if some pairs are unpaired or ranked rows and others are not.
        """
        tokens, lengths, rows, reference = array("i"), array("i"), array("q"), array("d")
        unscored, labels, desirable = array("q"), array("d"), array("b")
        counts, n_ranked = array("i"), 0
        for pair in pairs:
            parts = (pair.prompt, *pair.responses)
            if pair.others is None and pair.baseline is None:
                parts += ((),)
            n_ranked += pair.others is not None
            counts.append(len(parts))
            if pair.scored is not None:
                unscored.extend(_unscored(parts, pair.scored, len(tokens)))
            for part in parts:
                tokens.extend(part)
                lengths.append(len(part))
            rows.append(pair.row)
            labels.extend(pair.label)
            if pair.desirable is not None:
                desirable.append(pair.desirable)
            known = pair.reference or ()
            reference.extend((*known, *[np.nan] * (len(parts) - 1 - len(known))))
        for count, kind in ((len(desirable), "unpaired"), (n_ranked, "ranked")):
            if count not in (0, len(rows)):
                raise ValueError(
                    f"`pairs` must be all paired or all {kind}, got {count} {kind} rows among "
                    f"{len(rows)}"
                )
        n_parts = np.asarray(counts)
        width = int(n_parts.max(initial=0 if len(n_parts) else 1 + len(Role)))
        table = _as_rows(np.asarray(lengths), n_parts, width, 0.0)
        sizes = table.sum(1, dtype=np.int64)
        scored = None
        if unscored:
            scored = np.ones(len(tokens), bool)
            scored[np.asarray(unscored)] = False
        return cls(
            np.asarray(tokens),
            np.cumsum(sizes) - sizes,
            table,
            np.asarray(rows).view(np.int64),
            _as_rows(np.asarray(reference), n_parts - 1, width - 1, np.nan),
            scored,
            None if all(number == 1.0 for number in labels) else np.asarray(labels).reshape(-1, 2),
            np.asarray(desirable).astype(bool) if desirable else None,
            n_ranked > 0,
        )

    @classmethod
    def concatenate(cls, tables: Sequence[PairTable]) -> PairTable:
        """Store the pairs of several tables one after another.

        Args:
            tables: the tables, at least one; a single one is returned as it is.

        Returns:
            A table of all pairs.

        Raises:
            ValueError: if some tables have ranked rows and others do not.

        Examples:
            >>> one = PairTable.from_pairs([PairTokens((1,), (2,), (3,), None, 0)])
            >>> len(PairTable.concatenate([one, one]))
            2
        """
        tables = [table for table in tables if len(table)] or tables[:1]
        if len(tables) == 1:
            return tables[0]
        ranked = {table.is_ranked for table in tables}
        if len(ranked) > 1:
            raise ValueError("`tables` must all have ranked rows, or none of them, got both")
        width = max(table.lengths.shape[1] for table in tables)

        def widen(values: np.ndarray, columns: int, absent: float) -> np.ndarray:
            missing = columns - values.shape[1]
            return np.pad(values, ((0, 0), (0, missing)), constant_values=absent)

        sizes = [len(table._tokens) for table in tables]
        offsets = np.cumsum([0, *sizes[:-1]])
        scored = labels = desirable = None
        if any(table._scored is not None for table in tables):
            scored = np.concatenate(
                [
                    np.ones(size, bool) if table._scored is None else table._scored
                    for size, table in zip(sizes, tables, strict=True)
                ]
            )
        if any(table.labels is not None for table in tables):
            labels = np.concatenate(
                [
                    np.ones((len(table), 2)) if table.labels is None else table.labels
                    for table in tables
                ]
            )
        marked = [table.desirable for table in tables if table.desirable is not None]
        if marked:
            desirable = np.concatenate(marked)
        return cls(
            np.concatenate([table._tokens for table in tables]),
            np.concatenate(
                [table._starts + offset for table, offset in zip(tables, offsets, strict=True)]
            ),
            np.concatenate([widen(table.lengths, width, 0.0) for table in tables]),
            np.concatenate([table.rows for table in tables]),
            np.concatenate([widen(table.reference, width - 1, np.nan) for table in tables]),
            scored,
            labels,
            desirable,
            ranked.pop(),
        )

    @property
    def has_baselines(self) -> bool:
        """Whether some pair has a baseline response.

        Examples:
            >>> pair = PairTokens((1,), (2,), (3,), (4,), 0)
            >>> PairTable.from_pairs([pair]).has_baselines
            True
        """
        return not self.is_ranked and bool(self.lengths[:, 1 + Role.BASELINE].any())

    @cached_property
    def digest(self) -> str:
        """SHA-256 digest of the rows, their tokens, which tokens are scored, and the labels."""
        sizes = self.lengths.sum(1, dtype=np.int64)
        if len(self) and not np.array_equal(self._starts, np.cumsum(sizes) - sizes):
            return PairTable.from_pairs(self).digest  # a selection of a larger table
        tokens = self._tokens[: int(sizes.sum())]
        scored = self._scored
        flags = np.ones(len(tokens), bool) if scored is None else scored[: len(tokens)]
        arrays = [self.lengths.astype(np.int64), self.rows, tokens, np.packbits(flags)]
        arrays += [array for array in (self.labels, self.desirable) if array is not None]
        return sha256_of_chunks(np.ascontiguousarray(array).tobytes() for array in arrays)

    @cached_property
    def scored_lengths(self) -> Int[np.ndarray, "n k"]:
        """Number of scored tokens of chosen, rejected and baseline response, or of a ranking.

        Examples:
            >>> scored = ((True, False, True), None, None)
            >>> pair = PairTokens((1,), (2, 3, 4), (5,), None, 0, scored=scored)
            >>> PairTable.from_pairs([pair]).scored_lengths.tolist()
            [[2, 1, 0]]
        """
        lengths = self.lengths[:, 1:]
        if self._scored is None:
            return lengths
        sums = np.concatenate([[0], np.cumsum(self._scored)])
        ends = self._starts[:, None] + np.cumsum(self.lengths, axis=1, dtype=np.int64)[:, 1:]
        return (sums[ends] - sums[ends - lengths]).astype(lengths.dtype)

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
            PairLabel() if self.labels is None else PairLabel(*self.labels[index].tolist()),
            None if self.desirable is None else self.desirable[index].item(),
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
            self._scored,
            None if self.labels is None else self.labels[indices],
            None if self.desirable is None else self.desirable[indices],
            self.is_ranked,
        )

    def _pair(
        self,
        start: int,
        lengths: list[int],
        row: int,
        reference: Float[np.ndarray, " k"],
        label: PairLabel,
        desirable: bool | None,
    ) -> PairTokens:
        parts, scored = [], []
        for length in lengths:
            stop = start + length
            parts.append(tuple(self._tokens[start:stop].tolist()))
            if self._scored is not None:
                mask = self._scored[start:stop]
                scored.append(None if mask.all() else tuple(mask.tolist()))
            start = stop
        prompt, chosen, rejected, *rest = parts
        known = tuple(reference[~np.isnan(reference)].tolist())
        if self.is_ranked:
            others, baseline = tuple(filter(None, rest)), None
            scored = scored[: 3 + len(others)]
        else:
            others, baseline = None, rest[0] or None
        masks = tuple(scored[1:]) if any(scored) else None
        parts = prompt, chosen, rejected, baseline
        return PairTokens(*parts, row, known or None, masks, label, desirable, others)


def _as_rows(
    values: Shaped[np.ndarray, " values"], counts: Int[np.ndarray, " n"], width: int, absent: float
) -> Shaped[np.ndarray, "n width"]:
    """Arrange values in rows that have the given numbers of them, and ``absent`` after those."""
    table = np.full((len(counts), width), absent, values.dtype)
    table[np.arange(width) < counts[:, None]] = values
    return table


def _unscored(
    parts: tuple[tuple[int, ...], ...], scored: tuple[ScoredTokens | None, ...], start: int
) -> Iterator[int]:
    """Yield the indices of the tokens that are not scored; the parts begin at ``start``."""
    start += len(parts[0])
    for part, mask in zip(parts[1:], scored, strict=True):
        if mask is not None and part:  # a baseline response may be absent
            if len(mask) != len(part):
                raise ValueError(
                    f"`scored` must have one entry for each of {len(part)} tokens, got {len(mask)}"
                )
            yield from (start + index for index, is_scored in enumerate(mask) if not is_scored)
        start += len(part)


def as_pair_table(pairs: Sequence[PairTokens]) -> PairTable:
    """Convert a sequence of pairs to a table, unless it is one.

    Args:
        pairs: tokenized pairs.

    Returns:
        The table.
    """
    return pairs if isinstance(pairs, PairTable) else PairTable.from_pairs(pairs)
