"""Columns of a file of votes: which layouts are read, and what a row says."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import NamedTuple

COLUMNS = ("context", "winner", "loser", "count")
"""Columns of a file in which each row names its winner."""
BATTLE_COLUMNS = ("model_a", "model_b", "winner")
"""Columns of a file in which a row names two systems and the outcome."""
TIES = ("tie", "tie (bothbad)", "tie (both bad)", "tie(bothbad)", "both_bad", "bothbad", "both bad")
"""Outcomes that count as half a win for either side, in lower case."""
ONLY_CONTEXT = "all votes"
"""Name of the context if the file has no column ``context``."""
MAX_COUNT = 10**15
"""Largest count of a row; sums of a few such counts are still exact in float64."""

_COUNT_SYNONYMS = ("counts", "n", "num", "number", "votes", "weight", "weights", "times", "freq")
_MAX_QUOTED = 60
_SIMILAR = 0.8  # difflib's ratio of "contxt" and "context" is .92


class VotesFileError(ValueError):
    """Mistake in a file of votes; the message names the file, the line and the field."""


class VoteRow(NamedTuple):
    """Content of a row: a context, two actions, the number of votes and whether they are ties.

    Attributes:
        context: name of the context.
        first: the winner, or either side of a tie.
        second: the loser, or the other side.
        votes: number of votes.
        is_tie: whether nobody won.
    """

    context: str
    first: str
    second: str
    votes: int
    is_tie: bool


class VoteTable(NamedTuple):
    """Layout of a file of votes.

    Attributes:
        header: names of the columns.
        first: column of the first action.
        second: column of the second action.
        passed_over: columns that are not read.
    """

    header: tuple[str, ...]
    first: str
    second: str
    passed_over: tuple[str, ...]

    def read_row(self, row: list[str]) -> VoteRow:
        """Read a row.

        Args:
            row: its fields.

        Returns:
            The content.

        Raises:
            ValueError: if a field is wrong; the message names it.
        """
        if len(row) != len(self.header):
            expected = f"must have the {len(self.header)} fields of the header"
            raise ValueError(f"{expected}, got {len(row)}")
        fields = dict(zip(self.header, row, strict=True))
        for name in ("context", self.first, self.second, "winner"):
            if name in fields and not fields[name].strip():
                raise ValueError(f"`{name}` must not be empty")
        context = fields.get("context", ONLY_CONTEXT)
        first, second = fields[self.first], fields[self.second]
        count = _count(fields.get("count", "1"))
        if self.first == "winner":
            _refuse_tie(fields)
            return VoteRow(context, first, second, count, is_tie=False)
        for name in (first, second):
            if name.strip().lower() in (*BATTLE_COLUMNS[:2], *TIES):
                rule = "must hold names of systems, not of columns or ties"
                raise ValueError(f"`model_a` and `model_b` {rule}, got {quote(name)}")
        outcome = fields["winner"].strip()
        if outcome.lower() in TIES:
            return VoteRow(context, first, second, count, is_tie=True)
        if outcome.lower() == "model_a" or fields["winner"] == first:
            return VoteRow(context, first, second, count, is_tie=False)
        if outcome.lower() == "model_b" or fields["winner"] == second:
            return VoteRow(context, second, first, count, is_tie=False)
        rule = "must be model_a, model_b, the name of one of them, tie, tie (bothbad) or both_bad"
        raise ValueError(f"`winner` {rule}, got {quote(fields['winner'])}")

    def notes(self) -> tuple[str, ...]:
        """Return remarks on the columns, as sentences."""
        notes = []
        if "context" not in self.header:
            notes.append("The file has no column `context`: all votes are in one context.")
        if self.passed_over:
            names = ", ".join(quote(name)[1:-1] or "(no name)" for name in self.passed_over)
            notes.append(f"Columns passed over: {names}.")
        return tuple(notes)


def read_header(header: list[str]) -> VoteTable:
    """Return the layout that the names of the columns stand for.

    Args:
        header: fields of the first line.

    Returns:
        The layout.

    Raises:
        ValueError: if the columns are not those of a file of votes, or one is likely misspelled.

    Examples:
        >>> read_header(["judge", "model_a", "model_b", "winner"]).passed_over
        ('judge',)
    """
    names = tuple(name.strip() for name in header)
    if set(BATTLE_COLUMNS) <= set(names):
        first, second, known = *BATTLE_COLUMNS[:2], ("context", *BATTLE_COLUMNS, "count")
    elif {"winner", "loser"} <= set(names):
        first, second, known = "winner", "loser", COLUMNS
    else:
        raise ValueError(_header_rule(header))
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"the header must be free of repeats, got {quote(repeated[0])} twice")
    passed_over = tuple(name for name in names if name not in known)
    absent = [name for name in ("context", "count") if name not in names]
    for name in passed_over:
        near = difflib.get_close_matches(name.lower(), absent, n=1, cutoff=_SIMILAR)
        if name.lower() in _COUNT_SYNONYMS and "count" in absent:
            near = ["count"]
        if near:
            rule = f"the column {quote(name)} is not known: did you mean `{near[0]}`?"
            raise ValueError(f"{rule} Rename or remove it")
    if passed_over and "context" in absent and first == "winner":
        rule = f"the header must be `{','.join(COLUMNS)}`, got no `context` beside"
        remedy = f"rename {quote(passed_over[0])} to `context`, or remove it for one context"
        raise ValueError(f"{rule} {quote(passed_over[0])}: {remedy}")
    return VoteTable(names, first, second, passed_over)


def quote(text: str) -> str:
    r"""Quote text of a file on one line, in ASCII and not too long.

    Args:
        text: any text.

    Returns:
        The quoted text.

    Examples:
        >>> quote("tea\u00e9")
        "'tea\\xe9'"
    """
    quoted = ascii(text)
    return quoted if len(quoted) <= _MAX_QUOTED else quoted[:_MAX_QUOTED] + "..."


def _header_rule(header: list[str]) -> str:
    """Return what the header must be, and a hint about what it looks like."""
    text = ",".join(header)
    got = quote(text) if header else "an empty file"
    votes, battles = f"`{','.join(COLUMNS)}`", f"`{','.join(BATTLE_COLUMNS)}`"
    rule = f"the header must be {votes} or {battles}, got {got}"
    if ";" in text and len(header) == 1:
        return f"{rule}: separate the columns by commas, not semicolons"
    if text.lstrip().startswith(("{", "[")):
        return f"{rule}: write the votes as CSV, not as JSON"
    lowered = {name.strip().lower() for name in header}
    if {"winner", "loser"} <= lowered or set(BATTLE_COLUMNS) <= lowered:
        return f"{rule}: write the names in lower case"
    optional = "(`context` and `count` may be left out)"
    rule = f"the header must be {votes} {optional} or {battles}, got {got}"
    required = ("winner", "loser", *BATTLE_COLUMNS[:2])
    absent = [name for name in required if name not in lowered]
    for name in header:
        near = difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=_SIMILAR)
        if near and name.strip().lower() not in required:
            return f"{rule}: {quote(name)} is not known, did you mean `{near[0]}`?"
    return rule


def _refuse_tie(fields: dict[str, str]) -> None:
    for name in ("winner", "loser"):
        if fields[name].strip().lower() in TIES:
            columns = ", ".join(BATTLE_COLUMNS)
            raise ValueError(
                f"`{name}` must be the name of an action, got {quote(fields[name])}: "
                f"give ties with the columns {columns}"
            )


def _count(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_COUNT))):
        rule = f"must be a whole number from 0 to {MAX_COUNT:.0e}"
        raise ValueError(f"`count` {rule}, got {quote(text)}")
    if int(digits) > MAX_COUNT:
        raise ValueError(f"`count` must be at most {MAX_COUNT:.0e}, got {digits}")
    return int(digits)
