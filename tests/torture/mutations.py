"""Damaged inputs: mutations of bytes, and of JSON documents as trees."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

MAX_INPUT_BYTES = 2**14
"""Limit of an input; large inputs have tests of their own."""
NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**32, 2**53, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308)
TEXTS = (
    *("", " ", "a", "null", "true", "nan", "-inf", "\0", "\x1b[31m", "\u202e", "\ud800", "\ufeff"),
    *("../../etc/passwd", "/dev/zero", "<script>", "$x$", "%s{0}", "user", "assistant", "x" * 3000),
)
SMALL = (*NUMBERS, *TEXTS, None, True, False, float("nan"), float("inf"), float("-inf"), [], {})
FRAGMENTS = (
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


def mutate(rng: Random, seeds: Sequence[bytes], fragments: Sequence[bytes] = ()) -> bytes:
    """Mutate a few bytes of a random seed.

    Args:
        rng: random number generator.
        seeds: valid inputs.
        fragments: byte strings that have a meaning in this format.

    Returns:
        The mutated input; one in a thousand is random bytes.
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
                data[start:stop] = rng.choice([*FRAGMENTS, *fragments])
            case 3:
                data[start:stop] = rng.randbytes(stop - start)
            case 4:
                donor = rng.choice(seeds)
                offset = rng.randrange(len(donor) + 1)
                data[start:stop] = donor[offset : offset + rng.choice((1, 8, 100))]
            case _:
                if start < len(data):
                    data[start] ^= 1 << rng.randrange(8)
    return bytes(data[:MAX_INPUT_BYTES])


def mutate_document(rng: Random, document: Any, values: Sequence[Any] = ()) -> Any:
    """Change, move, repeat or delete one to four nodes of a document.

    Args:
        rng: random number generator.
        document: a tree of lists, mappings and scalars.
        values: scalars that have a meaning in this format.

    Returns:
        The mutated copy.
    """
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        nodes = list(_nodes(document))
        if not nodes:
            return rng.choice(SMALL)
        parent, key = rng.choice(nodes)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1:
                donor, source = rng.choice(nodes)
                parent[key] = copy.deepcopy(donor[source]) if source in _keys(donor) else None
            case 2:
                parent[key] = [parent[key]] * rng.choice((1, 2, 30))
            case 3 if isinstance(parent, dict):
                parent[_rename(rng, key)] = parent.pop(key)
            case 4 if isinstance(parent, list):
                parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 2, 30))
            case _:
                parent[key] = rng.choice([*SMALL, *values])
    return document


def to_bytes(document: Any) -> bytes:
    """Format a document as JSON, with values that JSON does not allow."""
    return json.dumps(document, default=str).encode()[:MAX_INPUT_BYTES]


def _nodes(document: Any) -> list[tuple[Any, Any]]:
    """Return every container of a document with each of its keys or indices."""
    if not isinstance(document, dict | list):
        return []
    keys = _keys(document)
    below = (node for key in keys for node in _nodes(document[key]))
    return [(document, key) for key in keys] + list(below)


def _keys(document: Any) -> list[Any]:
    return list(document) if isinstance(document, dict) else list(range(len(document)))


def _rename(rng: Random, key: str) -> str:
    index = rng.randrange(len(key) + 1)
    return rng.choice((key.upper(), key + "s", key[:index] + key[index + 1 :], rng.choice(TEXTS)))
