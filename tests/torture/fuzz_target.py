"""A kind of input: good ones, how they are spoilt, and the reader that the commands use for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

Feed = Callable[[bytes], object]
Spoil = Callable[[Random], bytes]


class Target(NamedTuple):
    """A kind of input.

    Attributes:
        feed: hands an input to the reader, in a folder.
        seeds: good inputs.
        spoil: an input that is nearly good, by what it means.
        pieces: bytes that mean something in it.
        errors: what the reader may raise, exactly; the message names the input.
    """

    feed: Feed
    seeds: Sequence[bytes]
    spoil: Spoil
    pieces: Sequence[bytes] = ()
    errors: tuple[type[Exception], ...] = (ValueError,)


NAME = "input"
"""Every message has it."""
