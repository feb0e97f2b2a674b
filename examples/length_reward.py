"""A reward function of one's own: the nearer to 20 words, the better."""

from collections.abc import Sequence

from llm import Message


def reward(prompt: Sequence[Message], reply: str) -> float:
    """Return a number; the larger one wins. `prompt[-1].content` is the text of the question."""
    return -abs(len(reply.split()) - 20)
