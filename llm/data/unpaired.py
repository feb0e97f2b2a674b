"""Unpaired rows: a prompt, one response, and whether it is desirable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .columns import RowRules
from .conversation import Conversation
from .files import Row
from .labels import read_desirable, read_weight
from .preference_records import PreferenceRow
from .row_kind import RowKind

UNPAIRED = RowKind(
    name="unpaired",
    marks="`completion` and `label`",
    fields="a `completion` and a `label`",
    required=("completion", "label"),
    refused=("chosen", "rejected", "baseline"),
    remedy="write each response of a pair as a row",
)


def is_unpaired(fields: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Return whether a row has one response with a label, and no pair of responses.

    Args:
        fields: values by column.
        columns: name of the column for a field, see :func:`stream_preferences`.

    Examples:
        >>> is_unpaired({"prompt": "a", "completion": "b", "good": True}, {"label": "good"})
        True
    """
    has = {
        field: fields.get(columns.get(field, field)) is not None
        for field in ("completion", "label", "chosen", "rejected")
    }
    return has["completion"] and has["label"] and not (has["chosen"] or has["rejected"])


def check_unpaired(row: Row, rules: RowRules) -> None:
    """Raise an error if a row among unpaired rows is a pair, or has no response or label.

    Args:
        row: column values and their source.
        rules: rules for the columns of unpaired rows.

    Raises:
        ValueError: if it is; the message names file, line and field.

    Examples:
        >>> from llm.data.columns import UNPAIRED_FIELDS
        >>> rules = RowRules(fields=UNPAIRED_FIELDS)
        >>> check_unpaired(Row({"prompt": "a", "completion": "b", "label": 1}, "r.jsonl:1"), rules)
    """
    UNPAIRED.check(row, rules)


def make_unpaired_row(
    conversation: Conversation, fields: Mapping[str, Any], number: int, tools: str, rules: RowRules
) -> PreferenceRow:
    """Make the record of an unpaired row from its conversation, whose response is ``completion``.

    Args:
        conversation: prompt and response.
        fields: values by the names of :data:`llm.data.columns.UNPAIRED_FIELDS`.
        number: index of the row in its file, from 0.
        tools: tools as a canonical JSON list.
        rules: rules for the columns of unpaired rows.

    Returns:
        The row.

    Raises:
        ValueError: if the label or the weight cannot be read.
    """
    where, response = conversation.where, conversation.responses["completion"]
    desirable = read_desirable(fields["label"], rules.column_of("label"), where)
    return PreferenceRow(
        conversation.prompt,
        response,
        response,
        None,
        number,
        where,
        tools=tools,
        label=read_weight(fields, where),
        desirable=desirable,
    )
