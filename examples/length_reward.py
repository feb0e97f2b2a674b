"""A reward function of one's own: the nearer to 20 words, the better."""


def reward(prompt: list[dict[str, str]], reply: str) -> float:
    """Return a number; the larger one wins. `prompt` is a list of messages."""
    return -abs(len(reply.split()) - 20)
