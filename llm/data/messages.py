"""Messages of conversations, parsed from the forms in which data sets store them.

A conversation is a text, a list of messages, ``{"messages": [...]}``, or one message. A message has
``role`` and ``content``, or ``from`` and ``value`` as in ShareGPT. Content is a text, or a list of
parts of which every one is a text.
"""

from __future__ import annotations

import ast
import json
import re
import reprlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from .column_hints import printable
from .columns import FieldError, RowRules

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEMPLATE_NAMES = (
    "citations function_call name reasoning reasoning_content thinking tool_call_id tool_calls "
    "tool_plan tool_responses"
)
TEMPLATE_FIELDS = frozenset(_TEMPLATE_NAMES.split())
"""Further fields of a message that published chat templates read."""

_ROLES = frozenset(CHAT_ROLES)
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model"), "assistant"),
    "system": "system",
    "tool": "tool",
}
_MAY_BE_JSON = frozenset('"[{ \t\r\n\ufeff')
_LOOKS_LIKE_JSON = re.compile(r"(?:\[\s*)?\{\s*['\"]\w+['\"]\s*:")
_MAX_JSON_CHARACTERS = 10**6


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
        role: author of the message: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
        content: text of the message.
        extra: further fields that a chat template can read, such as ``tool_calls`` or ``name``, as
            a JSON object without spaces, its names sorted; empty if there are none. ``content`` is
            null in it if the message has no text at all, as a call of a tool may.
    """

    role: str
    content: str
    extra: str = ""

    @property
    def may_be_empty(self) -> bool:
        """Whether the message may have no text: a call of a tool, or the result of one.

        Examples:
            >>> [Message(role, "").may_be_empty for role in ("tool", "user")]
            [True, False]
        """
        return self.role == "tool" or '"tool_calls":' in self.extra

    def to_dict(self) -> dict[str, Any]:
        """Return the message as a mapping, as a chat template reads it.

        Examples:
            >>> Message("tool", "4", '{"name":"add"}').to_dict()
            {'role': 'tool', 'content': '4', 'name': 'add'}
        """
        extra = json.loads(self.extra) if self.extra else {}
        return {"role": self.role, "content": self.content, **extra}


Messages = tuple[Message, ...]
"""A conversation, or a part of one."""


def parse_conversation(value: Any, rules: RowRules, *, role: str) -> Messages:
    """Parse a conversation, or a part of one.

    Args:
        value: a text, which is one message of ``role``; a list of messages; one message; or an
            object whose ``messages`` is a list of them.
        rules: rules for further fields of messages, which count what they pass over.
        role: role of the author of a text.

    Returns:
        The messages.

    Raises:
        FieldError: if the value is none of these, or a message is invalid.

    Examples:
        >>> parse_conversation([{"from": "human", "value": "Hi"}], RowRules(), role="user")[0][:2]
        ('user', 'Hi')
    """
    if isinstance(value, str):
        return (Message(role, _text(value, "")),)
    if isinstance(value, dict):
        value = _messages_of(value)
    if not isinstance(value, list):
        raise FieldError("", f"must be a string or a list of messages, got {type(value).__name__}")
    messages = []
    for index, message in enumerate(value):
        try:
            messages.append(_message(message, rules))
        except FieldError as error:
            raise FieldError(f"[{index}]{error.path}", error.rule) from error
    return tuple(messages)


def parse_tools(value: Any) -> str:
    """Parse the tools that the assistant may call.

    Args:
        value: a list of objects, or such a list as JSON; None and an empty list for no tools.

    Returns:
        The list as JSON without spaces; empty if there are no tools.

    Raises:
        FieldError: if the value is no such list.

    Examples:
        >>> parse_tools([{"name": "search"}])
        '[{"name":"search"}]'
    """
    if isinstance(value, str):
        try:
            value = load_json(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise FieldError("", f"must be a list of tools, or one as JSON: {error}") from error
    if value is None or value == []:
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, dict) and tool for tool in value):
        raise FieldError("", f"must be a list of objects, got {reprlib.repr(value)}")
    return dump_json(value, "")


def dump_json(value: Any, path: str) -> str:
    """Format a value as JSON without spaces, in the order of its keys.

    Args:
        value: lists, objects, texts and finite numbers.
        path: path of the value below its field, for errors.

    Returns:
        The text, valid Unicode.

    Raises:
        FieldError: if the value is not plain JSON.

    Examples:
        >>> dump_json({"b": [1], "a": None}, "")
        '{"b":[1],"a":null}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise FieldError(path, f"must consist of plain JSON values: {reason}") from error
    return text


def load_json(text: str) -> Any:
    """Parse JSON strictly.

    Args:
        text: a JSON document.

    Returns:
        Its value.

    Raises:
        ValueError: if the text is not JSON, an object has a key twice, or a number is not finite.
        RecursionError: if it is nested too deeply.

    Examples:
        >>> load_json('{"a": 1}')
        {'a': 1}
    """
    return STRICT_JSON.decode(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key `{printable(twice)}` stands twice in one object: keep one")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON: write null, or leave the key out")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""Decoder that refuses what Python's own would drop: equal keys, NaN and infinities."""
JSON_WITH_NAN = json.JSONDecoder(object_pairs_hook=_unique_keys)
"""Decoder that refuses equal keys but reads NaN, which AlpacaEval writes for missing verdicts."""


def _messages_of(value: dict[str, Any]) -> Any:
    """Return the list of messages of an object, or of one message."""
    if "role" in value or "from" in value:
        return [value]
    name = next((name for name in ("messages", "conversations") if name in value), None)
    if name is None:
        got = reprlib.repr(list(value))
        raise FieldError(
            "", f"must be a string, a list of messages or an object with `messages`, got {got}"
        )
    for other, content in value.items():
        if other != name and content not in (None, "", [], {}):
            raise FieldError(
                f".{printable(other)}",
                f"is not read: beside `{name}`, write it as a column of the row",
            )
    return value[name]


def _message(value: Any, rules: RowRules) -> Message:
    if type(value) is dict and len(value) == 2:
        role, content = value.get("role"), value.get("content")
        if type(role) is str and role in _ROLES and type(content) is str:
            return Message(role, _text(content, ".content", is_tool=role == "tool"))
    if isinstance(value, dict):
        fields = {name: item for name, item in value.items() if item is not None}
        if "role" not in fields and {"from", "value"} <= value.keys():
            fields = _from_sharegpt(fields)
        if "role" in fields and ("content" in value or "value" in value or "tool_calls" in fields):
            return _full_message(fields, rules)
    got = reprlib.repr(list(value)) if isinstance(value, dict) else type(value).__name__
    raise FieldError("", f"must be an object with `role` and `content`, got {got}")


def _from_sharegpt(fields: dict[str, Any]) -> dict[str, Any]:
    author = fields.pop("from", None)
    if not isinstance(author, str) or author not in _SHAREGPT_ROLES:
        raise FieldError(
            ".from",
            f"must be one of {', '.join(_SHAREGPT_ROLES)}, got {reprlib.repr(author)}: write the "
            "message with `role` and `content`",
        )
    if "content" in fields:
        raise FieldError("", "must have `value` or `content`, got both")
    content = {"content": fields.pop("value")} if "value" in fields else {}
    return {"role": _SHAREGPT_ROLES[author], **content, **fields}


def _full_message(fields: dict[str, Any], rules: RowRules) -> Message:
    """Return the message of fields without null values."""
    role = fields.pop("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise FieldError(
            ".role", f"must be one of {', '.join(CHAT_ROLES)}, got {reprlib.repr(role)}"
        )
    has_content = "content" in fields
    content = fields.pop("content", "")
    further = rules.message_extra(fields, TEMPLATE_FIELDS)
    calls = further.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        raise FieldError(".tool_calls", f"must be a list of objects, got {reprlib.repr(calls)}")
    if not has_content:
        if calls is None:
            raise FieldError(".content", "must be a string, got NoneType")
        further["content"] = None
    elif isinstance(content, list):
        content = _join_parts(content)
    elif not isinstance(content, str):
        raise FieldError(".content", f"must be a string, got {type(content).__name__}")
    extra = dump_json({name: further[name] for name in sorted(further)}, "") if further else ""
    return Message(role, _text(content, ".content", is_tool=role == "tool"), extra)


def _join_parts(parts: list[Any]) -> str:
    """Return the text of a content that consists of parts."""
    texts = []
    for index, part in enumerate(parts):
        path = f".content[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            got = reprlib.repr(part)
            raise FieldError(path, f'must be a part such as {{"type": "text"}}, got {got}')
        if part["type"] != "text":
            kind = printable(part["type"])
            raise FieldError(path, f"is a part of type `{kind}`: only text can be read")
        other = [name for name in part if name not in ("type", "text") and part[name] is not None]
        if other or not isinstance(part.get("text"), str):
            got = ", ".join(map(printable, part))
            raise FieldError(path, f"must have `type` and a string `text` only, got {got}")
        texts.append(part["text"])
    return "".join(texts)


def _text(value: str, path: str, *, is_tool: bool = False) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FieldError(path, f"must be Unicode text: {error.reason}") from error
    if value[:1] in _MAY_BE_JSON and not is_tool and _is_json_conversation(value):
        raise FieldError(
            path,
            "is a string that holds a conversation: write the messages themselves, as in "
            '[{"role": "assistant", "content": "..."}]',
        )
    return value


def _is_json_conversation(text: str) -> bool:
    """Return whether a text is a list of messages, as JSON or as printed by Python."""
    text = text.strip().lstrip("\ufeff")
    if len(text) > _MAX_JSON_CHARACTERS:
        return False
    with suppress(ValueError, RecursionError):
        if text.startswith('"') and isinstance(inner := json.loads(text), str):
            text = inner.strip()  # JSON that was written as JSON once more
    if not _LOOKS_LIKE_JSON.match(text):
        return False
    lines = text.splitlines()
    for parse in (json.loads, ast.literal_eval, lambda _: [json.loads(line) for line in lines]):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return _is_conversation(parse(text))
    return False


def _is_conversation(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("messages", value.get("conversations", [value]))
    if not isinstance(value, list) or not value:
        return False

    def is_message(item: Any) -> bool:
        if not isinstance(item, dict):
            return False
        role = item.get("role", item.get("from"))
        if item.keys() == {"type", "text"} and item["type"] == "text":
            return True  # a content of parts
        has_content = not {"content", "value", "tool_calls"}.isdisjoint(item)
        return has_content and isinstance(role, str) and role in _ROLES | _SHAREGPT_ROLES.keys()

    return all(map(is_message, value))


def word_count(text: str) -> int:
    """Return the number of words of a text; without spaces, three characters count as one.

    Examples:
        >>> word_count("Name a color."), word_count("2+2=")
        (3, 1)
    """
    count = len(text.split())
    return count if text.isascii() else max(count, len(text) // 3)


def same_text(first: Iterable[Message], second: Iterable[Message]) -> bool:
    """Return whether two conversations have the same roles and texts.

    Examples:
        >>> same_text([Message("user", "a")], [Message("user", "a", '{"name":"ann"}')])
        True
    """
    return [message[:2] for message in first] == [message[:2] for message in second]
