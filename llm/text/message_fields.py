"""Check that a chat template writes all messages, their fields and the tools of a conversation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, cast

from llm.data.preferences import Message, Messages, RowError

from .chat_template import TracedText

Render = Callable[[Messages, str, bool], TracedText]
"""Render messages with tools and, if the last argument is True, with the generation prompt."""
IDENTIFIERS = ("id", "index", "tool_call_id", "type")
"""Fields that identify messages and calls; many templates leave them out."""


class UnwrittenFields:
    """A check of what a chat template leaves out.

    A message, a tool or a field that the template never writes is refused. What it leaves out by
    design is counted: identifiers, and the reasoning of earlier turns.

    Args:
        render: function that renders messages with the template.
        fields: names of the fields that the template reads.
    """

    def __init__(self, render: Render, fields: frozenset[str]) -> None:
        """Start with no counts."""
        self._render = render
        self._fields = fields
        self._left_out: defaultdict[str, set[int]] = defaultdict(set)

    def counts(self) -> dict[str, int]:
        """Return how many messages have a field that the template leaves out by design.

        Returns:
            Number of messages by field.
        """
        return {name: len(messages) for name, messages in sorted(self._left_out.items())}

    def check(
        self, traced: TracedText, messages: Messages, tools: str, add_generation_prompt: bool
    ) -> None:
        """Check a rendered conversation.

        Args:
            traced: its text and the origins of its characters.
            messages: its messages.
            tools: tools that the assistant may call, a JSON list; empty for no tools.
            add_generation_prompt: whether the text ends with the generation prompt.

        Raises:
            RowError: if the template does not write a message, a field or the tools.
        """
        written: defaultdict[str, int] = defaultdict(int)
        for start, end, origin in traced.spans:
            written[origin] += _size(traced.text[start:end])
        for index, message in enumerate(messages):
            self._check_content(index, message, written[f"{index}.content"])
            fields: dict[str, Any] = json.loads(message.extra) if message.extra else {}
            for name, value in fields.items():
                if value is None:
                    continue
                if name == "tool_calls":
                    changes = _changed_calls(fields)
                elif written[f"{index}.{name}"] >= _size_of_value(value) > 0:
                    continue
                else:
                    changes = iter([(name, {key: fields[key] for key in fields if key != name})])
                for path, changed in changes:
                    other = message._replace(extra=json.dumps(changed))
                    others = (*messages[:index], other, *messages[index + 1 :])
                    if self._writes_same(traced, others, tools, add_generation_prompt):
                        self._refuse_or_count(path, message)
        for index, tool in enumerate(json.loads(tools) if tools else ()):
            size = written[f"tools.{index}"]
            if not size:
                raise RowError("chat template", "the chat template does not write `tools`")
            if size < _size_of_value(tool):
                self._left_out["a part of `tools`"].add(hash(tools))

    def _check_content(self, index: int, message: Message, written: int) -> None:
        size = _size(message.content)
        if size and not written:
            raise RowError(
                "chat template",
                f"the chat template does not write the content of message {index + 1}, of the "
                f"{message.role}, or in a way that cannot be followed",
            )
        if written < size:
            self._left_out["a part of `content`"].add(hash(message))

    def _writes_same(
        self, traced: TracedText, messages: Messages, tools: str, add_generation_prompt: bool
    ) -> bool:
        try:
            return self._render(messages, tools, add_generation_prompt).text == traced.text
        except RowError:  # the template reads the field
            return False

    def _refuse_or_count(self, path: str, message: Message) -> None:
        name = path.rpartition(".")[2]
        if name not in IDENTIFIERS and (name not in self._fields or "." in path):
            raise RowError(
                "chat template",
                f"the chat template does not write `{path}` of a message of the {message.role}: "
                "remove the field, or use a template that writes it",
            )
        self._left_out[f"`{path}`"].add(hash(message))


def _changed_calls(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path of each name and argument of calls, and the fields without its value."""
    calls = fields["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        yield "tool_calls", {key: fields[key] for key in fields if key != "tool_calls"}
        return
    calls = cast("list[dict[str, Any]]", calls)
    if any("id" in call for call in calls):
        without = [{key: call[key] for key in call if key != "id"} for call in calls]
        yield "tool_calls.id", {**fields, "tool_calls": without}
    for index, call in enumerate(calls):
        nested = isinstance(call.get("function"), dict)
        function: dict[str, Any] = call["function"] if nested else call
        for name, value in function.items():
            if not value or name in IDENTIFIERS:
                continue
            neutral: Any = {} if isinstance(value, dict) else [] if isinstance(value, list) else "_"
            changed: dict[str, Any] = {**function, name: neutral}
            other = {**call, "function": changed} if nested else changed
            path = f"tool_calls.function.{name}" if nested else f"tool_calls.{name}"
            yield path, {**fields, "tool_calls": [*calls[:index], other, *calls[index + 1 :]]}


def _size(text: str) -> int:
    """Return the number of characters without whitespace, which templates may trim."""
    return sum(map(len, text.split()))


def _size_of_value(value: Any) -> int:
    """Return the size of all strings in a JSON value."""
    if isinstance(value, str):
        return _size(value)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return sum(_size(key) + _size_of_value(item) for key, item in items)
    if isinstance(value, list):
        return sum(map(_size_of_value, cast("list[Any]", value)))
    return 0
