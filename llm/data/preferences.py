"""Preference rows: a prompt, the response that was chosen and the one that was rejected.

Prompts and responses are text, or lists of messages. Where only the two conversations are given,
the prompt is what they have in common *as messages*: as tokens they often have more in common.
Every mistake names the file, the line and the field.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from .rows import Row, read_rows

ROLES = ("system", "user", "assistant")
REFERENCE_FIELDS = ("ref_chosen_logps", "ref_rejected_logps", "ref_baseline_logps")


class Message(NamedTuple):
    """A turn of a conversation.

    Attributes:
        role: who speaks: ``system``, ``user`` or ``assistant``.
        content: what is said.
    """

    role: str
    content: str


Messages = tuple[Message, ...]


class PreferenceRow(NamedTuple):
    """A row of preference data.

    Attributes:
        prompt: messages before the response.
        chosen: the response that was preferred, one message of the assistant.
        rejected: the other.
        baseline: a response of the baseline policy, if that is not the chosen one.
        row: number of the row in its file, from 0.
        where: the row's place, ``file:line``, for messages.
        reference: log-probabilities of the responses under the reference policy, nats, in the
            order chosen, rejected, baseline; None if the row has none.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    baseline: Messages | None
    row: int
    where: str
    reference: tuple[float, ...] | None = None


class PairTokens(NamedTuple):
    """A row as tokens.

    Attributes:
        prompt: tokens of the prompt, with what comes before a reply; at least one.
        chosen: tokens of the chosen response, its end among them unless it was cut; at least one.
        rejected: of the rejected one.
        baseline: of the baseline response, if it is not the chosen one.
        row: number of the data row.
        reference: reference log-probabilities of the responses, nats, if the row had them.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    baseline: tuple[int, ...] | None
    row: int
    reference: tuple[float, ...] | None = None


class RowError(ValueError):
    """A row that cannot be used.

    Args:
        reason: a few words that are the same for all rows with this mistake, to count them by.
        message: what is wrong with this one.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Remember the reason."""
        super().__init__(message)
        self.reason = reason


def read_preferences(
    source: str | os.PathLike[str], *, check_content: bool = True
) -> list[PreferenceRow]:
    """Read all preference rows of a source, see :func:`stream_preferences`.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: see :func:`stream_preferences`.

    Returns:
        The rows, one or more.

    Raises:
        ValueError: something cannot be read; it names file, line and field.
    """
    return list(stream_preferences(source, check_content=check_content))


def stream_preferences(
    source: str | os.PathLike[str], *, check_content: bool = True
) -> Iterator[PreferenceRow]:
    """Read preference rows: JSONL, JSONL.gz, Parquet, or a data set on the Hugging Face hub.

    Columns are ``prompt``, ``chosen``, ``rejected`` and, if there are any, ``baseline`` and
    reference log-probabilities ``ref_chosen_logps``, ``ref_rejected_logps`` and
    ``ref_baseline_logps``; others are passed over. Responses may repeat the prompt's messages.

    Args:
        source: see :func:`llm.data.rows.read_rows`.
        check_content: refuse rows that :func:`check_row` refuses; otherwise they are left to
            :func:`llm.text.tokenize.tokenize_rows`, which can skip and count them.

    Yields:
        The rows, one or more; none is kept.

    Raises:
        ValueError: something cannot be read; it names file, line and field.
    """
    number = -1
    for number, read in enumerate(read_rows(source)):
        row = parse_row(read, number)
        if check_content:
            check_row(row)
        yield row
    if number < 0:
        raise ValueError(f"{os.fspath(source)} has no rows")


def parse_row(read: Row, number: int) -> PreferenceRow:
    """Take a row apart.

    Args:
        read: columns and place.
        number: of the row in its file, from 0.

    Returns:
        The row; whether there is anything to learn from it is for :func:`check_row` to say.

    Raises:
        ValueError: a column is missing or of a wrong type; it names file, line and field.

    Examples:
        >>> row = parse_row(Row({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "a.jsonl:1"), 0)
        >>> row.prompt, row.chosen
        ((Message(role='user', content='2+2?'),), (Message(role='assistant', content='4'),))
    """
    fields, where = read
    chosen = _messages(fields, "chosen", where, role="assistant")
    rejected = _messages(fields, "rejected", where, role="assistant")
    baseline = None
    if fields.get("baseline") is not None:
        baseline = _messages(fields, "baseline", where, role="assistant")
    if fields.get("prompt") is not None:
        prompt = _messages(fields, "prompt", where, role="user")
    elif isinstance(fields["chosen"], str) or isinstance(fields["rejected"], str):
        raise ValueError(
            f"{where}: field `prompt` is missing; only for responses that are lists of messages "
            "is it what they begin with in common"
        )
    else:
        prompt = _common_prefix(chosen, rejected)
    chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    baseline = None if baseline is None else _after(prompt, baseline)
    reference = _reference(fields, where, with_baseline=baseline is not None)
    return PreferenceRow(prompt, chosen, rejected, baseline, number, where, reference)


def check_row(row: PreferenceRow) -> None:
    """Refuse a row of which nothing, or something wrong, would be learned.

    Args:
        row: the row.

    Raises:
        RowError: an empty text, equal responses, or roles out of order.
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
    turns = [message.role for message in row.prompt]
    if turns[0] == "system":
        turns = turns[1:]
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
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
                f"{row.where}: field `{name}` must be one message of the assistant after the "
                f"prompt, got {', '.join(message.role for message in response) or 'none'}",
            )
        _check_content(row.where, name, response)


def _check_content(where: str, name: str, messages: Messages) -> None:
    for message in messages:
        if not message.content.strip():
            raise RowError(
                "empty text", f"{where}: field `{name}` has an empty {message.role} text"
            )


def _messages(fields: Mapping[str, Any], name: str, where: str, *, role: str) -> Messages:
    """Messages of a field; a text is one message of ``role``."""
    value = fields.get(name)
    if value is None:
        raise ValueError(f"{where}: field `{name}` is missing")
    if isinstance(value, str):
        return (Message(role, _text(value, f"{where}: field `{name}`")),)
    if not isinstance(value, list):
        raise ValueError(
            f"{where}: field `{name}` must be a text or a list of messages, got "
            f"{type(value).__name__}"
        )
    return tuple(
        _message(message, f"{where}: field `{name}[{place}]`")
        for place, message in enumerate(value)
    )


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        got = reprlib.repr(list(value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{place} must be an object with `role` and `content`, got {got}")
    if value["role"] not in ROLES:
        raise ValueError(
            f"{place}: `role` must be one of {', '.join(ROLES)}, got {reprlib.repr(value['role'])}"
        )
    return Message(value["role"], _text(value["content"], f"{place}: `content`"))


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place} must be a text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} must be Unicode text: {error.reason}") from error
    return value


def _common_prefix(first: Messages, second: Messages) -> Messages:
    """Messages that two conversations begin with, their last ones never among them."""
    length = 0
    for one, other in zip(first[:-1], second[:-1], strict=False):
        if one != other:
            break
        length += 1
    return first[:length]


def _after(prompt: Messages, messages: Messages) -> Messages:
    """A response without the prompt that it may repeat; alone, it begins with the assistant."""
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _reference(
    fields: Mapping[str, Any], where: str, *, with_baseline: bool
) -> tuple[float, ...] | None:
    names = REFERENCE_FIELDS[: 3 if with_baseline else 2]
    if all(fields.get(name) is None for name in names):
        return None
    return tuple(_log_probability(fields.get(name), name, names, where) for name in names)


def _log_probability(value: Any, name: str, names: tuple[str, ...], where: str) -> float:
    # Of certainty the logarithm is 0. Too large an integer is no float at all.
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if -math.inf < float(value) <= 0:
                return float(value)
    raise ValueError(
        f"{where}: field `{name}` must be a finite log-probability, at most 0, got "
        f"{reprlib.repr(value)}; give {', '.join(names)} all or none of them"
    )
