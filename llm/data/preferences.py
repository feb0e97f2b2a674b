"""Preference rows: a prompt, the chosen and the rejected response, and optional columns.

Prompts and responses are strings or lists of messages. If a row has only the two conversations,
its prompt is the list of *messages* that they have in common, never of common tokens. Every error
names the file, the line and the field.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from .rows import Row, read_rows

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
REFERENCE_FIELDS = ("ref_chosen_logps", "ref_rejected_logps", "ref_baseline_logps")


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
        role: author of the message: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
        content: text of the message.
        extra: further fields that a chat template can read, such as ``tool_calls`` or ``name``: a
            canonical JSON object with sorted keys and no spaces; empty if there are none.
    """

    role: str
    content: str
    extra: str = ""


Messages = tuple[Message, ...]
"""A conversation, or a part of one."""


class PreferenceRow(NamedTuple):
    """A row of preference data.

    Attributes:
        prompt: messages before the response.
        chosen: the preferred response: one message of the assistant, or several turns that begin
            and end with one; only messages of the assistant are scored.
        rejected: the other response, under the same rule.
        baseline: a response of the baseline policy; None if it is the chosen response.
        row: index of the row in its file, from 0.
        where: source of the row, ``file:line``, for error messages.
        reference: log-probabilities of the responses under the reference policy, nats, in the
            order chosen, rejected, baseline; None if the row has none.
        tools: tools that the assistant may call, for the chat template: a canonical JSON list;
            empty if the row has none.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    baseline: Messages | None
    row: int
    where: str
    reference: tuple[float, ...] | None = None
    tools: str = ""


ScoredTokens = tuple[bool, ...]
"""Whether each token of a response is scored: True for tokens of the assistant."""


class PairTokens(NamedTuple):
    """A tokenized preference row.

    Attributes:
        prompt: tokens of the prompt with the generation prompt; at least one.
        chosen: tokens of the chosen response; at least one. The end token is included unless the
            response was truncated.
        rejected: tokens of the rejected response, under the same rules.
        baseline: tokens of the baseline response; None if it is the chosen response.
        row: index of the data row.
        reference: reference log-probabilities of the responses, nats; None if the row has none.
        scored: scored tokens of chosen, rejected and baseline response. An entry is None if all
            tokens of that response are scored; None for three such entries.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    baseline: tuple[int, ...] | None
    row: int
    reference: tuple[float, ...] | None = None
    scored: tuple[ScoredTokens | None, ScoredTokens | None, ScoredTokens | None] | None = None


class RowError(ValueError):
    """An error in one data row.

    Args:
        reason: short name of the kind of error, by which skipped rows are counted.
        message: full message with file, line and field.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Store the reason."""
        super().__init__(message)
        self.reason = reason


def read_preferences(
    source: str | os.PathLike[str], *, check_content: bool = True
) -> list[PreferenceRow]:
    """Read all preference rows of a source into memory.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: see :func:`stream_preferences`.

    Returns:
        The rows, at least one.

    Raises:
        ValueError: if a row cannot be read; the message names file, line and field.
    """
    return list(stream_preferences(source, check_content=check_content))


def stream_preferences(
    source: str | os.PathLike[str], *, check_content: bool = True
) -> Iterator[PreferenceRow]:
    """Read preference rows one at a time from JSONL, JSONL.gz, Parquet or a hub data set.

    Columns are ``prompt``, ``chosen``, ``rejected`` and optionally ``baseline`` and the reference
    log-probabilities ``ref_chosen_logps``, ``ref_rejected_logps`` and ``ref_baseline_logps``. Other
    columns are ignored. Responses may repeat the messages of the prompt.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: apply :func:`check_row`. If False, :func:`llm.text.tokenize.tokenize_rows`
            applies it, which can skip and count bad rows.

    Yields:
        The rows, at least one.

    Raises:
        ValueError: if a row cannot be read; the message names file, line and field.
    """
    number = -1
    for number, fields in enumerate(read_rows(source)):
        row = parse_row(fields, number)
        if check_content:
            check_row(row)
        yield row
    if number < 0:
        raise ValueError(f"{os.fspath(source)} has no rows")


def parse_row(row: Row, number: int) -> PreferenceRow:
    """Parse the columns of a preference row; its content is not checked.

    Args:
        row: column values and their source.
        number: index of the row in its file, from 0.

    Returns:
        The preference row; :func:`check_row` checks that it can be trained on.

    Raises:
        ValueError: if a column is missing or of a wrong type; the message names file, line and
            field.

    Examples:
        >>> row = parse_row(Row({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "a.jsonl:1"), 0)
        >>> row.prompt[0], row.chosen[0].content
        (Message(role='user', content='2+2?', extra=''), '4')
    """
    fields, where = row
    chosen = _messages(fields, "chosen", where, role="assistant")
    rejected = _messages(fields, "rejected", where, role="assistant")
    baseline = None
    if fields.get("baseline") is not None:
        baseline = _messages(fields, "baseline", where, role="assistant")
    if fields.get("prompt") is not None:
        prompt = _messages(fields, "prompt", where, role="user")
    elif isinstance(fields["chosen"], str) or isinstance(fields["rejected"], str):
        raise ValueError(
            f"{where}: field `prompt` is missing; it may be left out only if `chosen` and "
            "`rejected` are lists of messages that begin with the same messages"
        )
    else:
        prompt = _common_prefix(chosen, rejected)
    chosen, rejected = _without_prompt(prompt, chosen), _without_prompt(prompt, rejected)
    baseline = None if baseline is None else _without_prompt(prompt, baseline)
    reference = _reference(fields, where, with_baseline=baseline is not None)
    return PreferenceRow(prompt, chosen, rejected, baseline, number, where, reference)


def check_row(row: PreferenceRow) -> None:
    """Raise an error if a row cannot be trained on.

    Args:
        row: a parsed row.

    Raises:
        RowError: if a text is empty, the responses are identical, or the roles of the messages do
            not alternate.
    """
    if row.chosen == row.rejected:
        raise RowError(
            "identical responses", f"{row.where}: fields `chosen` and `rejected` are identical"
        )
    if not row.prompt:
        raise RowError(
            "no prompt",
            f"{row.where}: field `prompt` is empty: there must be a message before the responses",
        )
    _check_content(row.where, "prompt", row.prompt)
    roles = [message.role for message in row.prompt]
    if roles[0] == "system":
        roles = roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise RowError(
            "roles out of order",
            f"{row.where}: field `prompt`: roles must alternate from user to user, after at most "
            f"one system message, got {', '.join(message.role for message in row.prompt)}",
        )
    for name in ("chosen", "rejected", "baseline"):
        response = getattr(row, name)
        if response is None:
            continue
        if [message.role for message in response] != ["assistant"]:
            raise RowError(
                "roles out of order",
                f"{row.where}: field `{name}` must be exactly one assistant message after the "
                f"prompt, got {', '.join(message.role for message in response) or 'none'}",
            )
        _check_content(row.where, name, response)


def _check_content(where: str, name: str, messages: Messages) -> None:
    for message in messages:
        if not message.content.strip():
            raise RowError(
                "empty text", f"{where}: field `{name}` has an empty {message.role} message"
            )


def _messages(fields: Mapping[str, Any], name: str, where: str, *, role: str) -> Messages:
    """Parse the messages of a field; a string is one message of ``role``."""
    value = fields.get(name)
    if value is None:
        raise ValueError(f"{where}: field `{name}` is missing")
    if isinstance(value, str):
        return (Message(role, _text(value, f"{where}: field `{name}`")),)
    if not isinstance(value, list):
        raise ValueError(
            f"{where}: field `{name}` must be a string or a list of messages, got "
            f"{type(value).__name__}"
        )
    return tuple(
        _message(message, f"{where}: field `{name}[{index}]`")
        for index, message in enumerate(value)
    )


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        got = reprlib.repr(list(value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{where} must be an object with `role` and `content`, got {got}")
    if value["role"] not in CHAT_ROLES:
        raise ValueError(
            f"{where}: `role` must be one of {', '.join(CHAT_ROLES)}, got "
            f"{reprlib.repr(value['role'])}"
        )
    return Message(value["role"], _text(value["content"], f"{where}: `content`"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be Unicode text: {error.reason}") from error
    return value


def _common_prefix(first: Messages, second: Messages) -> Messages:
    """Return the leading messages that two conversations share, without their last messages."""
    length = 0
    for ours, theirs in zip(first[:-1], second[:-1], strict=False):
        if ours != theirs:
            break
        length += 1
    return first[:length]


def _without_prompt(prompt: Messages, messages: Messages) -> Messages:
    """Remove the prompt from the start of a conversation; a bare response is returned as it is."""
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _reference(
    fields: Mapping[str, Any], where: str, *, with_baseline: bool
) -> tuple[float, ...] | None:
    names = REFERENCE_FIELDS[: 3 if with_baseline else 2]
    if all(fields.get(name) is None for name in names):
        return None
    return tuple(_log_probability(fields.get(name), name, names, where) for name in names)


def _log_probability(value: Any, name: str, names: tuple[str, ...], where: str) -> float:
    # The log-probability 0 means certainty. float() of a huge integer raises OverflowError.
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if -math.inf < float(value) <= 0:
                return float(value)
    raise ValueError(
        f"{where}: field `{name}` must be a finite log-probability, at most 0, got "
        f"{reprlib.repr(value)}; give all of {', '.join(names)}, or none"
    )
