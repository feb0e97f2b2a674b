"""Inputs that are nearly right: mutations of bytes, and of JSON documents as trees."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

LARGEST = 2**14
"""Bytes of an input at most: what is large on purpose is tested by itself."""
NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**32, 2**53, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308)
TEXTS = (
    *("", " ", "a", "null", "true", "nan", "-inf", "\0", "\x1b[31m", "\u202e", "\ud800", "\ufeff"),
    *("../../etc/passwd", "/dev/zero", "<script>", "$x$", "%s{0}", "user", "assistant", "x" * 3000),
)
SMALL = (*NUMBERS, *TEXTS, None, True, False, float("nan"), float("inf"), float("-inf"), [], {})
PIECES = (
    *(
        b"\0",
        b"\n",
        b"\r",
        b"\xff",
        b"\xef\xbb\xbf",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
    ),
    *(b"-", b"e999", b"NaN", b"1" * 5000, b"9" * 20, b"[" * 2000, b'{"a":' * 500, b"\xed\xa0\x80"),
    *(b"\\ud800", b"\\u0000", b"&a", b"*a", b"!!python/name:os.system", b"|", b">", b"#", b"\t"),
)


def mutate(rng: Random, seeds: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """A seed with a few mutations of its bytes.

    Args:
        rng: what decides.
        seeds: good inputs.
        pieces: what means something in this kind of input.

    Returns:
        Bytes; one in a thousand is noise.
    """
    if rng.random() < 1e-3:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((0, 1, 1, 2, 4, 16, 200)))
        match rng.randrange(6):
            case 0:
                data[start:stop] = b""
            case 1:
                data[start:start] = data[start:stop] * rng.choice((1, 2, 50))
            case 2:
                data[start:stop] = rng.choice([*PIECES, *pieces])
            case 3:
                data[start:stop] = rng.randbytes(stop - start)
            case 4:
                other = rng.choice(seeds)
                place = rng.randrange(len(other) + 1)
                data[start:stop] = other[place : place + rng.choice((1, 8, 100))]
            case _:
                if start < len(data):
                    data[start] ^= 1 << rng.randrange(8)
    return bytes(data[:LARGEST])


def mutate_document(rng: Random, document: Any, values: Sequence[Any] = ()) -> Any:
    """A document with one or two places changed, moved, repeated or gone.

    Args:
        rng: what decides.
        document: of lists, mappings and scalars.
        values: what means something in this kind of document.

    Returns:
        Another document.
    """
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            return rng.choice(SMALL)
        parent, step = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del parent[step]
            case 1:
                other, place = rng.choice(places)
                parent[step] = copy.deepcopy(other[place]) if place in _steps(other) else None
            case 2:
                parent[step] = [parent[step]] * rng.choice((1, 2, 30))
            case 3 if isinstance(parent, dict):
                parent[_renamed(rng, step)] = parent.pop(step)
            case 4 if isinstance(parent, list):
                parent[step:step] = [copy.deepcopy(parent[step])] * rng.choice((1, 2, 30))
            case _:
                parent[step] = rng.choice([*SMALL, *values])
    return document


def to_bytes(document: Any) -> bytes:
    """JSON, also of what JSON is not allowed to hold."""
    return json.dumps(document, default=str).encode()[:LARGEST]


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every container with every key or index of it."""
    if not isinstance(document, dict | list):
        return []
    steps = _steps(document)
    below = (place for step in steps for place in _places(document[step]))
    return [(document, step) for step in steps] + list(below)


def _steps(document: Any) -> list[Any]:
    return list(document) if isinstance(document, dict) else list(range(len(document)))


def _renamed(rng: Random, key: str) -> str:
    place = rng.randrange(len(key) + 1)
    return rng.choice((key.upper(), key + "s", key[:place] + key[place + 1 :], rng.choice(TEXTS)))
