"""Votes from a table in a text file, as win counts of a tabular contextual bandit.

The file is in UTF-8, with a header line and columns that are separated by commas (CSV) or tabs:

======================================= ==========================================================
columns, in any order                   a row is
======================================= ==========================================================
``context, winner, loser[, count]``     ``count`` votes in a context; without the column, one vote
``winner, loser[, count]``              the same, with all votes in one context
``model_a, model_b, winner[, count]``   a battle, optionally with ``context``: ``winner`` is
                                        ``model_a``, ``model_b``, the name of one of them, or
                                        ``tie``, ``tie (bothbad)``, ``both_bad``
======================================= ==========================================================

Equal rows add up, and a tie counts as half a win for either side. Further columns are passed over,
and listed in :attr:`Votes.notes`.
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rpo_theory.labels import LabelSpellings

from .vote_columns import VotesFileError, VoteTable, quote, read_header

MAX_CELLS = 5 * 10**7
"""Largest number of win counts, contexts x actions x actions: 400 MB."""


class Votes(NamedTuple):
    """Win counts and the names that their indices stand for.

    Attributes:
        contexts: names of the contexts, sorted by code point.
        actions: names of all winners and losers, sorted by code point.
        wins: ``wins[x, w, l]``, the number of votes in context ``x`` for ``w`` against ``l``. A
            tie adds half a vote to either side.
        occurs: whether an action stands in a row of a context, shape ``[x a]``. An action belongs
            only to the contexts in which it occurs.
        ties: number of ties.
        notes: remarks on the file as sentences, such as the columns that were passed over.
        tie_counts: ``tie_counts[x, a, b]``, the number of ties of the two actions in either order,
            which ``wins`` counts too; None without ties.
    """

    contexts: tuple[str, ...]
    actions: tuple[str, ...]
    wins: Float[np.ndarray, "x a a"]
    occurs: Bool[np.ndarray, "x a"]
    ties: int = 0
    notes: tuple[str, ...] = ()
    tie_counts: Float[np.ndarray, "x a a"] | None = None

    def with_ties_apart(self) -> Votes:
        """Return the votes without the half wins of the ties, for a model of ties.

        Returns:
            Votes whose ``wins`` count the decided votes only.

        Examples:
            >>> rows = [b"model_a,model_b,winner", b"a,b,tie", b"a,b,a"]
            >>> parse_votes(rows, name="v.csv").with_ties_apart().wins.tolist()
            [[[0.0, 1.0], [0.0, 0.0]]]
        """
        if self.tie_counts is None:
            return self
        halves = 0.5 * (self.tie_counts + self.tie_counts.transpose(0, 2, 1))
        notes = tuple(note for note in self.notes if note != _half_wins(self.ties))
        return self._replace(wins=self.wins - halves, notes=notes)

    def reference_policy(self) -> Float[np.ndarray, "x a"]:
        """Return the policy that is uniform over the actions which occur in a context.

        Returns:
            Probabilities; those of actions that do not occur in the context are 0.

        Examples:
            >>> rows = [b"context,winner,loser", b"q,b,a", b"p,c,b"]
            >>> parse_votes(rows, name="v.csv").reference_policy().tolist()
            [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]
        """
        return self.occurs / self.occurs.sum(axis=1, keepdims=True)

    def unconnected_contexts(self) -> tuple[str, ...]:
        """Return the contexts whose votes do not connect all actions that occur there.

        The votes then say nothing about how the actions of one group compare with those of
        another.

        Returns:
            Names of contexts.

        Examples:
            >>> rows = [b"context,winner,loser", b"q,b,a", b"q,d,c", b"p,b,a"]
            >>> parse_votes(rows, name="v.csv").unconnected_contexts()
            ('q',)
        """
        from scipy.sparse import coo_array  # takes a tenth of the start of a command
        from scipy.sparse.csgraph import connected_components

        n_contexts, n_actions = self.occurs.shape
        compared = self.wins if self.tie_counts is None else self.wins + self.tie_counts
        context, winner, loser = np.nonzero(compared)
        edges = context * n_actions + winner, context * n_actions + loser
        graph = coo_array((np.ones(len(context)), edges), shape=(n_contexts * n_actions,) * 2)
        groups = connected_components(graph, directed=False)[1].reshape(n_contexts, n_actions)
        return tuple(
            name
            for name, group, occurs in zip(self.contexts, groups, self.occurs, strict=True)
            if len(set(group[occurs].tolist())) > 1
        )


def read_votes(path: str | Path) -> Votes:
    """Read a file of votes.

    Args:
        path: path of the file, see :mod:`bandits.environments.votes` for its columns.

    Returns:
        The votes, which do not depend on the order of the rows.

    Raises:
        VotesFileError: if the file has a mistake; the message names its line.
        OSError: if the file cannot be opened.
    """
    with open(path, "rb") as file:
        return parse_votes(file, name=str(path))


def parse_votes(lines: Iterable[bytes], *, name: str) -> Votes:
    r"""Parse the lines of a file of votes.

    Args:
        lines: lines in UTF-8, with or without their line ends.
        name: name of the file in error messages.

    Returns:
        The votes, which do not depend on the order of the rows.

    Raises:
        VotesFileError: if a line has a mistake; the message names it.

    Examples:
        >>> votes = parse_votes([b"context,winner,loser\n", b"q,b,a\n", b"q,b,a\n"], name="v.csv")
        >>> votes.actions, votes.wins.tolist()
        (('a', 'b'), [[[0.0, 0.0], [2.0, 0.0]]])
        >>> parse_votes([b"model_a,model_b,winner\n", b"a,b,tie\n"], name="v.csv").wins.tolist()
        [[[0.0, 0.5], [0.5, 0.0]]]
    """
    rows = _rows(lines, name)
    header_line, header = next(rows, (1, []))
    try:
        table = read_header(header)
    except ValueError as error:
        raise VotesFileError(f"{name}, line {header_line}: {error}") from None
    contexts, actions = LabelSpellings(fold_case=False), LabelSpellings(fold_case=True)
    counts: Counter[tuple[str, str, str]] = Counter()
    ties: Counter[tuple[str, str, str]] = Counter()
    for line, row in rows:
        try:
            context, first, second, count, is_tie = table.read_row(row)
            contexts.check("context", context, f"line {line}")
            actions.check(table.first, first, f"line {line}")
            actions.check(table.second, second, f"line {line}")
            if first == second:
                rule = f"must differ from `{table.first}`: an action cannot beat itself"
                raise ValueError(f"`{table.second}` {rule}, got {quote(first)} twice")
        except ValueError as error:
            raise VotesFileError(f"{name}, line {line}: {error}") from None
        # In units of half a vote.
        counts[context, first, second] += count if is_tie else 2 * count
        if is_tie:
            counts[context, second, first] += count
            ties[context, first, second] += count
    if not counts.total():
        raise VotesFileError(f"{name}, line {header_line}: no votes below the header")
    return _votes(counts, table, ties, name)


def _rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line."""
    text, start = _decoded(lines, name), [""]
    while not start[-1].strip() and (line := next(text, None)) is not None:
        start.append(line)
    delimiter = "\t" if "\t" in start[-1] and "," not in start[-1] else ","
    reader = csv.reader(itertools.chain(start[1:], text), strict=True, delimiter=delimiter)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise VotesFileError(f"{name}, line {number}: not valid CSV: {error}") from None
        if row:
            yield number, row


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode the lines one by one, so that an error can name its line."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            got = f"byte 0x{line[error.start]:02x}"
            raise VotesFileError(f"{name}, line {number}: must be UTF-8, got {got}") from None
        if "\0" in text:
            raise VotesFileError(f"{name}, line {number}: must be text, got a NUL byte")
        yield text


def _votes(
    counts: Counter[tuple[str, str, str]],
    table: VoteTable,
    ties: Counter[tuple[str, str, str]],
    name: str,
) -> Votes:
    """Sort the names and return the counts, given in halves of a vote, as an array."""
    contexts = sorted({context for context, _, _ in counts})
    actions = sorted({action for _, *pair in counts for action in pair})
    cells = len(contexts) * len(actions) ** 2
    if cells > MAX_CELLS:
        size = f"{len(contexts)} contexts x {len(actions)} actions x {len(actions)} actions"
        raise VotesFileError(f"{name}: {size} is more than {MAX_CELLS:.0e} cells: split the file")
    context_index = {context: i for i, context in enumerate(contexts)}
    action_index = {action: i for i, action in enumerate(actions)}
    wins = np.zeros((len(contexts), len(actions), len(actions)))
    occurs = np.zeros(wins.shape[:2], bool)
    for (context, winner, loser), halves in counts.items():
        x, pair = context_index[context], [action_index[winner], action_index[loser]]
        wins[x, pair[0], pair[1]] = halves / 2
        occurs[x, pair] = True
    notes, tie_counts = table.notes(), None
    if n_ties := ties.total():
        notes = (*notes, _half_wins(n_ties))
        tie_counts = np.zeros(wins.shape)
        for (context, first, second), count in ties.items():
            tie_counts[context_index[context], action_index[first], action_index[second]] = count
    return Votes(tuple(contexts), tuple(actions), wins, occurs, n_ties, notes, tie_counts)


def _half_wins(ties: int) -> str:
    """Return the remark on ties that count as half a win."""
    count = "1 tie counts" if ties == 1 else f"{ties:,} ties count"
    return f"{count} as half a win for either side."
