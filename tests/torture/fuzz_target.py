"""A fuzz target: valid inputs, a generator of damaged ones, and the reader that commands use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

Read = Callable[[bytes], object]
Damage = Callable[[Random], bytes]


class Target(NamedTuple):
    """A fuzz target.

    Attributes:
        read: passes an input to the reader.
        seeds: valid inputs.
        damage: makes an input that is valid but for its meaning.
        fragments: byte strings that have a meaning in this format.
        errors: the exact exception types that the reader may raise, with a message that holds
            :data:`NAME`.
    """

    read: Read
    seeds: Sequence[bytes]
    damage: Damage
    fragments: Sequence[bytes] = ()
    errors: tuple[type[Exception], ...] = (ValueError,)


NAME = "input"
"""Name of every input, which error messages must hold."""
