"""Truncation of prompts inside the contents of their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

TruncationMode = Literal["keep_end", "keep_start"]


def cut_prompt(
    contents: Sequence[int], roles: Sequence[str], limit: int, mode: TruncationMode
) -> list[int] | None:
    """Choose the tokens that a truncated prompt keeps.

    One range of tokens is removed. It begins and ends inside contents of the same role, so that
    what remains is a conversation of whole turns.

    Args:
        contents: for each token the index of the message from whose content it comes; -1 for
            tokens that the template writes.
        roles: role of each message.
        limit: largest number of tokens to keep.
        mode: whether the end or the start of the contents is kept.

    Returns:
        Indices of the tokens that are kept, with at least one of a content; None if ``limit`` has
        no room for it beside the tokens of the template.

    Examples:
        >>> cut_prompt([-1, -1, 0, 0, 0, -1], ["user"], 4, "keep_end")
        [0, 1, 4, 5]
        >>> cut_prompt([-1, -1, 0, 0, 0, -1], ["user"], 4, "keep_start")
        [0, 1, 2, 5]
    """
    excess = len(contents) - limit
    kept = list(range(len(contents)))
    # The last message asks for the answer; messages of its role can be joined.
    ranges = [
        _content_range(contents, index) for index, role in enumerate(roles) if role == roles[-1]
    ]
    ranges = [(start, end) for start, end in ranges if start < end]
    if ranges and excess > 0:
        start, end = _cut_end(ranges, excess) if mode == "keep_start" else _cut(ranges, excess)
        del kept[start:end]
        excess -= end - start
    # Other contents, such as a system message, are cut only if that was not enough.
    for index in range(len(roles)):
        if excess > 0 and roles[index] != roles[-1]:
            tokens = [token for token in kept if contents[token] == index]
            removed = tokens[-excess:] if mode == "keep_start" else tokens[:excess]
            kept = [token for token in kept if token not in set(removed)]
            excess -= len(removed)
    return kept if excess <= 0 else None


def _content_range(contents: Sequence[int], index: int) -> tuple[int, int]:
    tokens = [token for token, message in enumerate(contents) if message == index]
    return (tokens[0], tokens[-1] + 1) if tokens else (0, 0)


def _cut(ranges: Sequence[tuple[int, int]], excess: int) -> tuple[int, int]:
    """Return the range to remove so that the end is kept."""
    start = ranges[0][0]
    for first, end in ranges:
        if start + excess < end:
            return start, max(first, start + excess)
    return start, ranges[-1][1] - 1


def _cut_end(ranges: Sequence[tuple[int, int]], excess: int) -> tuple[int, int]:
    """Return the range to remove so that the start is kept."""
    end = ranges[-1][1]
    for start, last in reversed(ranges):
        if start < end - excess:
            return min(last, end - excess), end
    return ranges[0][0] + 1, end
