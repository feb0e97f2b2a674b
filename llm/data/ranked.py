"""Ranked rows: a prompt and a list of responses, from best to worst or with scores or ranks."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from .column_hints import printable
from .columns import RowRules
from .conversation import Conversation
from .files import Row
from .labels import read_weight
from .preference_records import PreferenceRow
from .row_kind import RowKind

RANKED = RowKind(
    name="ranked",
    marks="`responses`",
    fields="a `prompt` and `responses`",
    required=("prompt", "responses"),
    refused=("chosen", "rejected", "baseline", "completion"),
    remedy="write a pair as a list of two responses, the chosen one first",
)


def is_ranked(fields: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Return whether a row has a list of responses, and neither a pair nor a completion.

    Args:
        fields: values by column.
        columns: name of the column for a field, see
            :func:`llm.data.preferences.stream_preferences`.

    Examples:
        >>> is_ranked({"prompt": "a", "answers": ["b", "c"]}, {"responses": "answers"})
        True
    """
    value = {
        field: fields.get(columns.get(field, field))
        for field in ("responses", "chosen", "rejected", "completion")
    }
    others = (value["chosen"], value["rejected"], value["completion"])
    return isinstance(value["responses"], list) and all(other is None for other in others)


def check_ranked(row: Row, rules: RowRules) -> None:
    """Raise an error if a row among ranked rows is of another kind, or lacks a column.

    Args:
        row: column values and their source.
        rules: rules for the columns of ranked rows.

    Raises:
        ValueError: if it is; the message names file, line and field.

    Examples:
        >>> from llm.data.columns import RANKED_FIELDS
        >>> rules = RowRules(fields=RANKED_FIELDS)
        >>> check_ranked(Row({"prompt": "a", "responses": ["b", "c"]}, "rows.jsonl:1"), rules)
    """
    RANKED.check(row, rules)
    column = rules.column_of("responses")
    value = row.fields[column]
    if not (isinstance(value, list) and len(value) >= 2):
        got = f"{len(value)}" if isinstance(value, list) else reprlib.repr(value)
        raise ValueError(
            f"{row.where}: field `{printable(column)}` must be a list of two responses or more, "
            f"got {got}: leave the row out, or add a response"
        )


def make_ranked_row(
    conversation: Conversation, fields: Mapping[str, Any], number: int, tools: str, rules: RowRules
) -> PreferenceRow:
    """Make the record of a ranked row from its conversation.

    Args:
        conversation: prompt and responses, in the order of the column.
        fields: values by the names of :data:`llm.data.columns.RANKED_FIELDS`.
        number: index of the row in its file, from 0.
        tools: tools as a canonical JSON list.
        rules: rules for the columns of ranked rows.

    Returns:
        The row.

    Raises:
        ValueError: if the weight, the scores or the ranks cannot be read, or two of them are equal.
    """
    responses, where = list(conversation.responses.values()), conversation.where
    ranking = _ranking(fields, len(responses), where, rules)
    best, second, *others = (responses[index] for index in ranking)
    return PreferenceRow(
        conversation.prompt,
        best,
        second,
        None,
        number,
        where,
        tools=tools,
        label=read_weight(fields, where),
        others=tuple(others),
        ranking=ranking,
    )


def _ranking(fields: Mapping[str, Any], count: int, where: str, rules: RowRules) -> tuple[int, ...]:
    """Return the indices of the responses from best to worst."""
    given = [name for name in ("scores", "ranks") if fields.get(name) is not None]
    if not given:
        return tuple(range(count))
    if len(given) > 1:
        columns = " and ".join(f"`{printable(rules.column_of(name))}`" for name in given)
        raise ValueError(
            f"{where}: fields {columns} must not both be given: pass one over, as in "
            "`data.columns: {scores: ignore}`"
        )
    name, column = given[0], printable(rules.column_of(given[0]))
    values = fields[name]
    rule = f"{where}: field `{column}` must be a list of one finite number for each response"
    if not isinstance(values, list) or not all(map(_is_finite, values)):
        raise ValueError(f"{rule}, got {reprlib.repr(values)}")
    if len(values) != count:
        raise ValueError(f"{rule}, got {len(values)} for {count} responses")
    ranking = sorted(range(count), key=values.__getitem__, reverse=name == "scores")
    for first, second in pairwise(ranking):
        if values[first] == values[second]:
            responses = printable(rules.column_of("responses"))
            one, other = sorted((first, second))
            raise ValueError(
                f"{where}: field `{column}` must have different values, got {values[first]} for "
                f"`{responses}[{one}]` and for `{responses}[{other}]`: a ranking has no ties: "
                "leave out one of the two responses"
            )
    return tuple(ranking)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)
