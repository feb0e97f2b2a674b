"""Votes from a CSV file, as win counts of a tabular contextual bandit.

The file is in UTF-8 and has the header ``context,winner,loser,count``. Without the column ``count``
each row is one vote. Equal rows add up.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

HEADER = ("context", "winner", "loser", "count")
MAX_COUNT = 10**15
"""Largest count of a row; sums of a few such counts are still exact in float64."""
MAX_CELLS = 5 * 10**7
"""Largest number of win counts, contexts x actions x actions: 400 MB."""

_MAX_QUOTED = 60


class VotesFileError(ValueError):
    """Mistake in a file of votes; the message names the file, the line and the field."""


class Votes(NamedTuple):
    """Win counts and the names that their indices stand for.

    Attributes:
        contexts: names of the contexts, sorted by code point.
        actions: names of all winners and losers, sorted by code point.
        wins: ``wins[x, w, l]``, the number of votes in context ``x`` for ``w`` against ``l``.
    """

    contexts: tuple[str, ...]
    actions: tuple[str, ...]
    wins: Float[np.ndarray, "x a a"]


def read_votes(path: str | Path) -> Votes:
    """Read a CSV file of votes.

    Args:
        path: path of the file.

    Returns:
        The votes, which do not depend on the order of the rows.

    Raises:
        VotesFileError: if the file has a mistake; the message names its line.
        OSError: if the file cannot be opened.
    """
    with open(path, "rb") as file:
        return parse_votes(file, name=str(path))


def parse_votes(lines: Iterable[bytes], *, name: str) -> Votes:
    r"""Parse the lines of a CSV file of votes.

    Args:
        lines: lines in UTF-8, with their line ends.
        name: name of the file in error messages.

    Returns:
        The votes, which do not depend on the order of the rows.

    Raises:
        VotesFileError: if a line has a mistake; the message names it.

    Examples:
        >>> votes = parse_votes([b"context,winner,loser\n", b"q,b,a\n", b"q,b,a\n"], name="v.csv")
        >>> votes.actions, votes.wins.tolist()
        (('a', 'b'), [[[0.0, 0.0], [2.0, 0.0]]])
    """
    rows = _rows(lines, name)
    header_line, header = next(rows, (1, []))
    if tuple(header) not in (HEADER, HEADER[:3]):
        got = _quote(",".join(header)) if header else "an empty file"
        rule = f"the header must be `{','.join(HEADER)}` (`count` may be left out), got {got}"
        raise VotesFileError(f"{name}, line {header_line}: {rule}")
    votes: Counter[tuple[str, str, str]] = Counter()
    for line, row in rows:
        try:
            count = _count(row, len(header))
        except ValueError as error:
            raise VotesFileError(f"{name}, line {line}: {error}") from None
        votes[row[0], row[1], row[2]] += count
    if not votes.total():
        raise VotesFileError(f"{name}, line {header_line}: no votes below the header")
    return _table(votes, name)


def _rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line."""
    reader = csv.reader(_decoded(lines, name), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise VotesFileError(f"{name}, line {line}: not valid CSV: {error}") from None
        if row:
            yield line, row


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


def _count(row: list[str], columns: int) -> int:
    """Return the ``count`` of a row, or 1 if the file has no such column; check all fields."""
    if len(row) != columns:
        raise ValueError(f"must have the {columns} fields of the header, got {len(row)}")
    for field, text in zip(HEADER[:3], row, strict=False):
        if not text.strip():
            raise ValueError(f"`{field}` must not be empty")
    if columns == 3:
        return 1
    text = row[3].strip()
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_COUNT))):
        rule = f"must be a whole number from 0 to {MAX_COUNT:.0e}"
        raise ValueError(f"`count` {rule}, got {_quote(row[3])}")
    if int(text) > MAX_COUNT:
        raise ValueError(f"`count` must be at most {MAX_COUNT:.0e}, got {text}")
    return int(text)


def _table(votes: Counter[tuple[str, str, str]], name: str) -> Votes:
    """Sort the names and return the counts as an array."""
    contexts = sorted({context for context, _, _ in votes})
    actions = sorted({action for _, *pair in votes for action in pair})
    cells = len(contexts) * len(actions) ** 2
    if cells > MAX_CELLS:
        size = f"{len(contexts)} contexts x {len(actions)} actions x {len(actions)} actions"
        raise VotesFileError(f"{name}: {size} is more than {MAX_CELLS:.0e} cells: split the file")
    context_index = {context: i for i, context in enumerate(contexts)}
    action_index = {action: i for i, action in enumerate(actions)}
    wins = np.zeros((len(contexts), len(actions), len(actions)))
    for (context, winner, loser), count in votes.items():
        wins[context_index[context], action_index[winner], action_index[loser]] = count
    return Votes(tuple(contexts), tuple(actions), wins)


def _quote(text: str) -> str:
    """Quote text of the file on one line, in ASCII and not too long."""
    quoted = ascii(text)
    return quoted if len(quoted) <= _MAX_QUOTED else quoted[:_MAX_QUOTED] + "..."
