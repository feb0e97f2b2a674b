"""The conversation of a row: its prompt, taken out of its responses, and its system message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .column_hints import unused
from .columns import FieldError, RowRules
from .messages import Messages, parse_conversation, same_text, word_count

_SYSTEM_ROLES = ("system", "developer")
_GREETING_LENGTH = 2
"""Longest prompt, in words, that a response may begin with by chance, as with "Good evening"."""
_START_LENGTH, _LABEL_LENGTH = 200, 40
"""Characters of a prompt that are compared, and of a label such as "Question:" before them."""
_KEPT = "rows with a response that begins with its own prompt, used as it is"
_STRIPPED = "rows whose responses begin with their own prompt, which is removed"


def common_prefix(first: Messages, second: Messages) -> Messages:
    """Return the messages that two conversations share, up to the last one that is answered.

    Args:
        first: messages of one conversation.
        second: messages of the other conversation.

    Returns:
        The shared messages, without the last message of either and without messages of the
        assistant at their end.

    Examples:
        >>> from llm.data.messages import Message
        >>> user, yes, no = (Message("user", "Hi"), *(Message("assistant", text) for text in "yn"))
        >>> common_prefix((user, yes), (user, no)) == (user,)
        True
    """
    length = 0
    for ours, theirs in zip(first[:-1], second[:-1], strict=False):
        if ours != theirs:
            break
        length += 1
    while length and first[length - 1].role == "assistant":
        length -= 1
    return first[:length]


@dataclass
class Conversation:
    """The messages of a row while it is parsed; its methods change them.

    Attributes:
        prompt: messages before the responses.
        responses: messages of each response by its field; they may repeat the prompt.
        where: source of the row.

    Examples:
        >>> from llm.data.messages import Message
        >>> user, reply = Message("user", "Is it so?"), Message("assistant", "Is it so? Yes.")
        >>> responses = dict.fromkeys(("chosen", "rejected"), (reply,))
        >>> conversation = Conversation((user,), responses, "a.jsonl:1")
        >>> conversation.strip_prompt_text(RowRules())
        >>> conversation.responses["chosen"][0].content
        'Yes.'
    """

    prompt: Messages
    responses: dict[str, Messages]
    where: str

    def remove_prompt(self, system: Messages) -> None:
        """Put a system message before the prompt, and remove the prompt from the responses.

        Args:
            system: the field ``system`` of the row; a message without text counts as none.

        Raises:
            ValueError: if ``system`` is another message, or contradicts that of the prompt.

        Examples:
            >>> from llm.data.messages import Message
            >>> user, reply = Message("user", "Hi"), Message("assistant", "Hello")
            >>> conversation = Conversation((user,), {"chosen": (user, reply)}, "a.jsonl:1")
            >>> conversation.remove_prompt((Message("system", "Be brief."),))
            >>> len(conversation.prompt), len(conversation.responses["chosen"])
            (2, 1)
        """
        bare = self.prompt
        if system:
            self._add_system(system)
        prompt, length = self.prompt, len(self.prompt)
        for name, response in self.responses.items():
            if len(response) > length and response[:length] == prompt:
                self.responses[name] = response[length:]
            elif bare is not prompt and response[: len(bare)] == bare:
                self.responses[name] = response[len(bare) :]
            elif length and response == prompt:
                self.responses[name] = ()

    def _add_system(self, system: Messages) -> None:
        system = tuple(message for message in system if message.content.strip())
        if len(system) > 1 or any(message.role not in _SYSTEM_ROLES for message in system):
            raise ValueError(f"{self.where}: field `system` must be a text or one system message")
        if not system or self.prompt[:1] == system:
            return
        if self.prompt and self.prompt[0].role in _SYSTEM_ROLES:
            raise ValueError(
                f"{self.where}: field `system` must be the system message with which field "
                "`prompt` begins, got another text: keep one of the two"
            )
        self.prompt = system + self.prompt

    def check_repeats(
        self, columns: Mapping[str, Any], lost: Sequence[str], rules: RowRules
    ) -> None:
        """Refuse columns with parts of a conversation, unless they repeat parts of this one.

        Args:
            columns: values by column.
            lost: further columns to refuse.
            rules: rules that count the columns that are passed over.

        Raises:
            ValueError: if a column holds anything else; the message names all of them.

        Examples:
            >>> from llm.data.messages import Message
            >>> conversation = Conversation((Message("user", "Hi"),), {}, "a.jsonl:1")
            >>> conversation.check_repeats({"question": "Hi"}, (), RowRules())
        """
        prompt = self.prompt
        has_system = prompt and prompt[0].role in _SYSTEM_ROLES
        known = list(self.responses.values())
        for start in (prompt, prompt[1:] if has_system else prompt):
            known += [start, *(start + response for response in self.responses.values())]
        texts = {message.content for message in prompt}
        texts |= {each[0].content for each in self.responses.values() if len(each) == 1}
        refused = []
        for name, value in columns.items():
            is_repeat = isinstance(value, str) and value in texts
            if isinstance(value, list | dict):
                with suppress(FieldError):
                    messages = parse_conversation(value, RowRules(), role="user")
                    is_repeat = any(same_text(messages, other) for other in known)
            if is_repeat:
                rules.pass_over(name)
            else:
                refused.append(name)
        if refused or lost:
            raise ValueError(f"{self.where}: {unused([*refused, *lost])}")

    def strip_prompt_text(self, rules: RowRules) -> None:
        """Remove the text of the prompt from responses that all begin with it.

        A single response that does, or a greeting that both repeat, is only counted.

        Args:
            rules: rules that count the rows.
        """
        prompt, responses = self.prompt, self.responses
        if not prompt or prompt[-1].role != "user":
            return
        text = prompt[-1].content.strip()
        remainders = {}
        for name, response in responses.items():
            remainder = _after_prompt(response[0].content, text) if response and text else None
            if remainder is not None:
                remainders[name] = remainder
        if not remainders:
            starts = [_start(message.content) for message in (prompt[0], prompt[-1])]
            firsts = [response[0].content for response in responses.values() if response]
            if any(_repeats(content, starts) for content in firsts):
                rules.find(_KEPT, self.where)
            return
        needed = [name for name in responses if name != "baseline"]
        is_pair = len(needed) > 1 and all(name in remainders for name in needed)
        is_greeting = word_count(text) <= _GREETING_LENGTH and text[-1] not in "=:?>"
        if not is_pair or is_greeting or not all(map(str.strip, remainders.values())):
            rules.find(_KEPT, self.where)
            return
        rules.find(_STRIPPED, self.where)
        for name, remainder in remainders.items():
            message = responses[name][0]
            content = remainder if rules.raw_text else remainder.lstrip()
            responses[name] = (message._replace(content=content), *responses[name][1:])


def _after_prompt(content: str, text: str) -> str | None:
    """Return what follows a prompt in a response that begins with it, with any spaces."""
    if not content.lstrip().startswith(text[0]):
        return None
    pieces = text.split()
    parts = content.split(maxsplit=len(pieces) - 1) if len(pieces) > 1 else [content.lstrip()]
    last = pieces.pop()
    if parts[:-1] != pieces or not parts[-1].startswith(last):
        return None
    return parts[-1].removeprefix(last)


def _start(text: str) -> str:
    """Return the start of a text with single spaces; empty for few words."""
    start = text.lstrip()[:_START_LENGTH]
    return " ".join(start.split()) if word_count(text) > _GREETING_LENGTH else ""


def _repeats(content: str, starts: Sequence[str]) -> bool:
    """Return whether a response begins with one of the starts, possibly after a label."""
    head = " ".join(content[: 2 * _START_LENGTH].split())
    return any(start and start in head[: len(start) + _LABEL_LENGTH] for start in starts)
