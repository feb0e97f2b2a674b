"""Weights, soft labels and vote counts of preference rows, and labels of unpaired rows.

A row counts ``weight`` times. Its ``label`` is the probability that the chosen response is the
better one. Instead of a label a row may have ``chosen_votes`` and ``rejected_votes``: it then
counts once for every vote, and its label is the share of the votes for the chosen response. The
``label`` of an unpaired row says whether its response is desirable.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from .columns import LABEL_FIELDS

_VOTES = LABEL_FIELDS[2:]
_DESIRABLE = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class PairLabel(NamedTuple):
    """How a pair counts.

    Attributes:
        weight: weight of the pair, at least 0.
        label: probability in [0, 1] that the chosen response is the better one.
    """

    weight: float = 1.0
    label: float = 1.0


def read_label(fields: Mapping[str, Any], where: str) -> PairLabel:
    """Read the weight and the label of a row.

    Args:
        fields: values by the names of :data:`llm.data.columns.FIELDS`. A ``label`` that is a text
            names something else and is not read.
        where: source of the row, for messages.

    Returns:
        Weight and label; 1 for what the row does not have.

    Raises:
        ValueError: if a number is out of range, only one of the vote counts is given, a row has
            votes and a label, or it has no votes at all.

    Examples:
        >>> read_label({"chosen_votes": 3, "rejected_votes": 1}, "rows.jsonl:1")
        PairLabel(weight=4.0, label=0.75)
    """
    if fields.keys().isdisjoint(LABEL_FIELDS):
        return PairLabel()
    given = {name: fields[name] for name in LABEL_FIELDS if fields.get(name) not in (None, "")}
    label = _as_number(given.get("label"))
    if "label" in given and label is None:
        del given["label"]
    weight = _number(given, "weight", math.inf, where) if "weight" in given else 1.0
    if not given.keys() & set(_VOTES):
        return PairLabel(weight, _number(given, "label", 1.0, where) if "label" in given else 1.0)
    if "label" in given:
        raise ValueError(f"{where}: field `label` must not be given with votes: leave one out")
    missing = [name for name in _VOTES if name not in given]
    if missing:
        raise ValueError(f"{where}: field `{missing[0]}` must be given with the other vote count")
    wins, losses = (_number(given, name, math.inf, where) for name in _VOTES)
    if wins + losses == 0:
        raise ValueError(f"{where}: fields `{_VOTES[0]}` and `{_VOTES[1]}` must not both be 0")
    return PairLabel(weight * (wins + losses), wins / (wins + losses))


def read_weight(fields: Mapping[str, Any], where: str) -> PairLabel:
    """Read the weight of a row that is not a pair: a ``label`` or votes mean something else there.

    Args:
        fields: values by column.
        where: source of the row, for messages.

    Returns:
        The weight, 1 if the row has none, with the label 1.

    Raises:
        ValueError: if the weight is out of range.

    Examples:
        >>> read_weight({"weight": 2, "label": 0}, "rows.jsonl:1")
        PairLabel(weight=2.0, label=1.0)
    """
    return read_label({"weight": fields.get("weight")}, where)


def read_desirable(value: Any, column: str, where: str) -> bool:
    """Read the label of an unpaired row.

    Args:
        value: true or false, 1 or 0, or one of these as a text in any case.
        column: name of its column, for messages.
        where: source of the row, for messages.

    Returns:
        Whether the response is desirable.

    Raises:
        ValueError: if it is anything else.

    Examples:
        >>> [read_desirable(value, "label", "rows.csv:1") for value in (1, "False")]
        [True, False]
    """
    text = f"{value}".strip().lower()
    if isinstance(value, bool | int | float | str) and text in _DESIRABLE:
        return _DESIRABLE[text]
    raise ValueError(
        f"{where}: field `{column}` of an unpaired row must be true or false (or 1 or 0), got "
        f"{reprlib.repr(value)}: say whether the completion is desirable"
    )


def _number(given: Mapping[str, Any], name: str, most: float, where: str) -> float:
    number = _as_number(given[name])
    if number is None or not 0.0 <= number <= most or math.isinf(number):
        rule = "a finite number, at least 0" if math.isinf(most) else "a probability in [0, 1]"
        raise ValueError(
            f"{where}: field `{name}` must be {rule}, got {reprlib.repr(given[name])}; "
            f"`data.columns: {{{name}: ignore}}` passes the column over"
        )
    return number


def _as_number(value: Any) -> float | None:
    """Return a number, or a text that is one; None for anything else."""
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)
    return None
