"""Transcripts of conversations in one text, as Anthropic's HH data sets have them."""

from __future__ import annotations

import re
from typing import Any

from .messages import Message, Messages

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    r"""Return whether a value is a text that begins with a human's turn, after a blank line.

    Args:
        value: value of a column.

    Examples:
        >>> is_transcript("\n\nHuman: Hi"), is_transcript("Human: Hi")
        (True, False)
    """
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def parse_transcript(text: str) -> Messages:
    r"""Parse a transcript into messages; spaces around each message are removed.

    Args:
        text: a text for which :func:`is_transcript` holds. Each message begins after a blank line
            with ``Human:`` or ``Assistant:``.

    Returns:
        The messages, in their order; a last message may be empty.

    Examples:
        >>> parse_transcript("\n\nHuman: Hi\n\nAssistant: Hello.")[1].content
        'Hello.'
    """
    _, *parts = _SPEAKER.split(text)
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        Message(_ROLES[speaker], content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    )


def as_transcript(prompt: Messages) -> Messages:
    r"""Return a prompt as the messages that transcripts which repeat it begin with.

    Args:
        prompt: messages of a prompt; its only one can be a transcript.

    Returns:
        The messages without spaces around their texts, and without an empty last one.

    Examples:
        >>> as_transcript((Message("user", "\n\nHuman: Hi\n\nAssistant:"),))
        (Message(role='user', content='Hi', extra=''),)
    """
    if len(prompt) == 1 and is_transcript(prompt[0].content):
        prompt = parse_transcript(prompt[0].content)
        return prompt if prompt[-1].content else prompt[:-1]
    return tuple(message._replace(content=message.content.strip()) for message in prompt)
