"""Preference rows: a prompt, the chosen and the rejected response, and optional columns.

An unpaired row has one response, ``completion``, and a ``label``: whether it is desirable. A ranked
row has a list of ``responses``.

Prompts and responses are strings or lists of messages. If a row has only the two conversations,
its prompt is the list of *messages* that they have in common, never of common tokens. Every error
names the file, the line and the field.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any

from .columns import (
    FIELDS,
    RANKED_FIELDS,
    REFERENCE_FIELDS,
    UNPAIRED_FIELDS,
    FieldError,
    RowRules,
)
from .conversation import Conversation, common_prefix
from .files import Row
from .labels import PairLabel, read_label
from .messages import CHAT_ROLES, Message, Messages, parse_conversation, parse_tools
from .preference_records import PairTokens, PreferenceRow, RowError, ScoredTokens
from .ranked import check_ranked, is_ranked, make_ranked_row
from .rows import read_rows
from .sources import Source, shown_source
from .transcripts import as_transcript, is_transcript, parse_transcript
from .unpaired import check_unpaired, is_unpaired, make_unpaired_row

__all__ = [
    "CHAT_ROLES",
    "REFERENCE_FIELDS",
    "Message",
    "Messages",
    "PairTokens",
    "PreferenceRow",
    "RowError",
    "ScoredTokens",
    "check_row",
    "parse_row",
    "parse_with_rules",
    "read_preferences",
    "stream_preferences",
]

_logger = logging.getLogger(__name__)
RESPONSES = ("chosen", "rejected", "baseline")
_TRANSCRIPTS = "rows whose responses are transcripts of `Human:` and `Assistant:`, read as messages"
_LABELED = "rows with a weight, a soft label or votes, which scale their losses"
_ONE_MESSAGE = "rows whose prompt is a transcript of `Human:` and `Assistant:`, used as one message"
_FOLLOWERS = {
    "start": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Roles that may follow a message, by its role."""


def read_preferences(
    source: Source,
    *,
    check_content: bool = True,
    columns: Mapping[str, str] | None = None,
) -> list[PreferenceRow]:
    """Read all preference rows of a source into memory.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: see :func:`stream_preferences`.
        columns: see :func:`stream_preferences`.

    Returns:
        The rows, at least one.

    Raises:
        ValueError: if a row cannot be read; the message names file, line and field.
    """
    return list(stream_preferences(source, check_content=check_content, columns=columns))


def stream_preferences(
    source: Source,
    *,
    check_content: bool = True,
    columns: Mapping[str, str] | None = None,
    raw_text: bool = False,
    notes: list[str] | None = None,
    all_kinds: bool = False,
) -> Iterator[PreferenceRow]:
    """Read preference rows one at a time from files or a hub data set.

    Columns are ``prompt``, ``chosen``, ``rejected`` and optionally ``baseline``, ``system``,
    ``tools``, the reference log-probabilities ``ref_chosen_logps``, ``ref_rejected_logps`` and
    ``ref_baseline_logps``, and ``weight``, ``label`` or ``chosen_votes`` with ``rejected_votes``,
    see :mod:`llm.data.labels`. Columns with ids, scores and other metadata are passed over and
    listed once; other columns with content are refused. Responses may repeat the messages of the
    prompt.

    If the first row has ``completion`` and ``label`` and no pair, all rows must be such unpaired
    rows, with ``prompt`` and optionally ``weight``, ``system`` and ``tools``. If it has a list of
    ``responses`` and no pair, all rows must be such ranked rows, with ``prompt`` and optionally
    ``scores`` or ``ranks``, and the same further columns.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: apply :func:`check_row`. If False, :func:`llm.text.tokenize.tokenize_rows`
            applies it, which can skip and count bad rows.
        columns: name of the column for a field, as in ``{"prompt": "question"}``; ``ignore`` passes
            a column over, and the key ``*`` stands for all other columns.
        raw_text: keep the spaces at the start of responses, for models without a chat template.
        notes: a list to which one sentence is added, after the last row, for everything that was
            passed over or changed; None logs the sentences.
        all_kinds: read unpaired and ranked rows too; they are refused otherwise.

    Yields:
        The rows, at least one.

    Raises:
        ValueError: if a row cannot be read; the message names file, line and field.
    """
    rules, number = RowRules(columns, raw_text=raw_text), -1
    for number, fields in enumerate(read_rows(source)):
        if number == 0 and all_kinds:
            names = _fields_of_first(fields.fields, columns or {})
            rules = RowRules(columns, raw_text=raw_text, fields=names)
        row = parse_with_rules(fields, number, rules)
        if check_content:
            check_row(row)
        yield row
    if number < 0:
        raise ValueError(f"{shown_source(source)} has no rows")
    if notes is not None:
        notes += rules.notes()
        return
    for note in rules.notes():
        _logger.info("%s: %s", shown_source(source), note)


def parse_row(row: Row, number: int) -> PreferenceRow:
    """Parse the columns of a preference row; its content is not checked.

    Args:
        row: column values and their source.
        number: index of the row in its file, from 0.

    Returns:
        The preference row; :func:`check_row` checks that it can be trained on.

    Raises:
        ValueError: if a column is missing, of a wrong type, or has content that is not used; the
            message names file, line and field.

    Examples:
        >>> row = parse_row(Row({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "a.jsonl:1"), 0)
        >>> row.prompt[0], row.chosen[0].content
        (Message(role='user', content='2+2?', extra=''), '4')
    """
    return parse_with_rules(row, number, RowRules())


def parse_with_rules(row: Row, number: int, rules: RowRules) -> PreferenceRow:
    """Parse a preference row as :func:`parse_row` does, with given rules for its columns.

    Args:
        row: column values and their source.
        number: index of the row in its file, from 0.
        rules: rules that map columns, and count what they pass over.

    Returns:
        The preference row.

    Raises:
        ValueError: see :func:`parse_row`.
    """
    where, name = row.where, ""
    try:
        fields, repeats, lost = rules.select(row.fields, where)
        if rules.is_unpaired:
            check_unpaired(row, rules)
        if rules.is_ranked:
            check_ranked(row, rules)
        values, responses = _response_values(fields, rules), {}
        for name, value in values.items():
            if value is not None:
                responses[name] = parse_conversation(value, rules, role="assistant")
            elif name != "baseline":
                raise ValueError(f"{where}: {rules.describe_missing(name, row.fields)}")
        name, prompt = "prompt", ()
        given = fields.get(name)
        if given is not None:
            prompt = parse_conversation(given, rules, role="user")
        transcripts = [each for each in responses if is_transcript(values[each])]
        needed = [each for each in responses if each != "baseline"]
        is_pair = not rules.is_unpaired and set(needed) <= set(transcripts)
        if is_pair and not (prompt and rules.raw_text):
            rules.find(_TRANSCRIPTS, where)
            responses |= {each: parse_transcript(values[each]) for each in transcripts}
            common = common_prefix(responses[needed[0]], responses[needed[1]])
            prompt = as_transcript(prompt) if prompt else common
        elif given is not None:
            if is_transcript(given) and not rules.raw_text and not transcripts:
                rules.find(_ONE_MESSAGE, where)
        elif rules.is_unpaired or any(isinstance(fields[each], str) for each in RESPONSES[:2]):
            raise ValueError(f"{where}: {rules.describe_missing(name, row.fields)}")
        else:
            prompt = common_prefix(responses["chosen"], responses["rejected"])
        name, system = "system", ()
        if fields.get(name) is not None:
            system = parse_conversation(fields[name], rules, role="system")
        conversation = Conversation(prompt, responses, where)
        conversation.remove_prompt(system)
        if repeats or lost:
            repeated = {column: row.fields[column] for column in repeats}
            conversation.check_repeats(repeated, lost, rules)
        conversation.strip_prompt_text(rules)
        name = "tools"
        tools = "" if fields.get(name) is None else parse_tools(fields[name])
    except FieldError as error:
        raise ValueError(f"{where}: field `{name}{error.path}` {error.rule}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: the row is nested too deeply") from error
    if rules.is_unpaired:
        return make_unpaired_row(conversation, fields, number, tools, rules)
    if rules.is_ranked:
        return make_ranked_row(conversation, fields, number, tools, rules)
    chosen, rejected = responses["chosen"], responses["rejected"]
    baseline = responses.get("baseline")
    reference = _reference(fields, where, with_baseline=baseline is not None)
    prompt, label = conversation.prompt, read_label(fields, where)
    if label != PairLabel():
        rules.find(_LABELED, where)
    return PreferenceRow(prompt, chosen, rejected, baseline, number, where, reference, tools, label)


def _fields_of_first(fields: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the fields that all rows have, by the columns of the first one."""
    if is_unpaired(fields, columns):
        return UNPAIRED_FIELDS
    return RANKED_FIELDS if is_ranked(fields, columns) else FIELDS


def _response_values(fields: Mapping[str, Any], rules: RowRules) -> dict[str, Any]:
    """Return the values of the responses by their names in messages, None for an absent one."""
    if rules.is_ranked:
        return {f"responses[{index}]": each for index, each in enumerate(fields["responses"])}
    names = ("completion",) if rules.is_unpaired else RESPONSES
    return {name: fields.get(name) for name in names}


def check_row(row: PreferenceRow) -> None:
    """Raise an error if a row cannot be trained on.

    Args:
        row: a parsed row.

    Raises:
        RowError: if a text is empty, the responses are identical, or the roles of the messages are
            out of order.
    """
    compared = {name: each for name, each in row.responses.items() if name != "baseline"}
    for (first, one), (second, other) in combinations(compared.items(), 2):
        if one == other:
            raise RowError(
                "identical responses",
                f"{row.where}: fields `{first}` and `{second}` are identical",
            )
    if not row.prompt:
        raise RowError(
            "no prompt",
            f"{row.where}: field `prompt` is empty: there must be a message before the responses",
        )
    _check_content(row.where, "prompt", row.prompt)
    if _last_role("start", row.prompt) not in ("user", "tool"):
        raise RowError(
            "roles out of order",
            f"{row.where}: field `prompt`: roles must alternate from user to user, after at most "
            f"one system message, got {_roles(row.prompt)}",
        )
    for name, response in row.responses.items():
        _check_response(row.where, name, response)


def _check_response(where: str, name: str, response: Messages) -> None:
    if _last_role("user", response) != "assistant":
        raise RowError(
            "roles out of order",
            f"{where}: field `{name}` must be a message of the assistant after the prompt, or "
            f"several turns that begin and end with one, got {_roles(response)}",
        )
    _check_content(where, name, response)


def _last_role(before: str, messages: Messages) -> str | None:
    """Return the role of the last message, or None if the roles are out of order."""
    for message in messages:
        if message.role not in _FOLLOWERS[before]:
            return None
        before = message.role
    return before


def _roles(messages: Messages) -> str:
    roles = [message.role for message in messages]
    more = f" and {len(roles) - 12} more" if len(roles) > 12 else ""
    return (", ".join(roles[:12]) + more) or "none"


def _check_content(where: str, name: str, messages: Messages) -> None:
    for message in messages:
        if not message.content.strip() and not message.may_be_empty:
            raise RowError(
                "empty text", f"{where}: field `{name}` has an empty {message.role} message"
            )


def _reference(
    fields: Mapping[str, Any], where: str, *, with_baseline: bool
) -> tuple[float, ...] | None:
    if not with_baseline and fields.get("ref_baseline_logps") is not None:
        raise ValueError(f"{where}: field `ref_baseline_logps` needs field `baseline`, got none")
    if fields.keys().isdisjoint(REFERENCE_FIELDS):
        return None
    names = REFERENCE_FIELDS[: 3 if with_baseline else 2]
    if all(fields.get(name) is None for name in names):
        return None
    return tuple(_log_probability(fields.get(name), name, names, where) for name in names)


def _log_probability(value: Any, name: str, names: tuple[str, ...], where: str) -> float:
    # The log-probability 0 means certainty. float() of a huge integer raises OverflowError.
    number = value
    if isinstance(value, str):  # CSV has texts only
        with suppress(ValueError):
            number = float(value)
    if isinstance(number, int | float) and not isinstance(number, bool):
        with suppress(OverflowError):
            if -math.inf < float(number) <= 0:
                return float(number)
    raise ValueError(
        f"{where}: field `{name}` must be a finite log-probability, at most 0, got "
        f"{reprlib.repr(value)}; give all of {', '.join(names)}, or none"
    )
