"""A JSON document whose mistakes are told with their file, line and field.

Python's parser gives positions of syntax errors only, accepts duplicate keys and ``NaN``, and reads
``true`` as the number 1. Here a value knows its path in the document; when a rule is broken the
text is walked once more to find the line of that path.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

MAX_BYTES = 64 * 2**20
"""A file of this size is read in seconds, and holds every pair of 2,000 actions."""

_SPACE = re.compile(r"[ \t\n\r]*")
_EXACT_DIGITS = 18
_SHOWN = 40


class DocumentError(ValueError):
    """A mistake in a document: one line with the file, the line, the field and the rule."""


class _Object(dict[str, Any]):
    """A JSON object that remembers the key it held twice."""

    duplicate: str | None = None

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.duplicate = next(key for key, count in counts.items() if count > 1)


def _whole_number(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; as a float they are infinite, a rule broken.
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_whole_number)


class Node(NamedTuple):
    """A value in a document.

    Attributes:
        name: name of the file, for errors.
        text: the whole document.
        path: keys and indices that lead to the value.
        value: what Python's parser made of it.
    """

    name: str
    text: str
    path: tuple[str | int, ...]
    value: Any

    def at(self, step: str | int) -> Node:
        """A member of an object, or an item of a list."""
        return self._replace(path=(*self.path, step), value=self.value[step])

    def refuse(self, rule: str, *below: str | int) -> NoReturn:
        """Raise the error of a rule that this value, or what is below it, breaks."""
        path = (*self.path, *below)
        field = "".join(f"[{s}]" if isinstance(s, int) else f".{_printable(s)}" for s in path)
        place = f"{self.name}, line {_line(self.text, path)}: "
        raise DocumentError(place + (f"`{field.lstrip('.')}` " if field else "") + rule)

    def members(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Node]:
        """The members of an object that must have some keys and may have others."""
        if not isinstance(self.value, _Object):
            self.refuse(f"must be an object, got {describe(self.value)}")
        if self.value.duplicate is not None:
            self.refuse("is there twice: keep one", self.value.duplicate)
        known = [*required, *optional]
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(known)}"
                self.refuse(f"is not a known key: {hint}", key)
        for key in required:
            if key not in self.value:
                self.refuse("is missing", key)
        return {key: self.at(key) for key in self.value}

    def choice(self, options: Iterable[str]) -> str:
        """A string that is one of some."""
        if not isinstance(self.value, str) or self.value not in options:
            listed = " or ".join(json.dumps(option) for option in options)
            self.refuse(f"must be {listed}, got {describe(self.value)}")
        return self.value

    def items(self) -> list[Any]:
        """The items of a list, as they are."""
        if not isinstance(self.value, list):
            self.refuse(f"must be a list, got {describe(self.value)}")
        return self.value

    def number(self) -> float:
        """A number; booleans and strings are none."""
        if not is_number(self.value):
            self.refuse(f"must be a number, got {describe(self.value)}")
        return float(self.value)

    def numbers(self, ndim: int) -> Float[np.ndarray, "..."]:
        """Nested lists of numbers, not ragged, as a float64 array of ``ndim`` axes."""
        shape, first = [], self
        for _ in range(ndim):
            if not first.items():
                first.refuse("must not be empty")
            shape.append(len(first.value))
            first = first.at(0)
        _check_shape(self, shape)
        return np.array(self.value, np.float64)


def load(path: str) -> Node:
    """Read the JSON document of a file, or of standard input for ``-``.

    Args:
        path: the file.

    Returns:
        The document's root.

    Raises:
        DocumentError: it is too large, not UTF-8, or not JSON.
        OSError: the file cannot be read.
    """
    if path == "-":
        return parse(sys.stdin.buffer.read(MAX_BYTES + 1), name="standard input")
    with open(path, "rb") as file:
        return parse(file.read(MAX_BYTES + 1), name=path)


def parse(data: bytes, *, name: str) -> Node:
    """Read a JSON document.

    Args:
        data: the document in UTF-8.
        name: name of the file, for errors.

    Returns:
        The document's root.

    Raises:
        DocumentError: it is too large, not UTF-8, or not JSON.

    Examples:
        >>> parse(b'{"beta": 0.1}', name="p.json").at("beta").number()
        0.1
    """
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{name}: must be at most {MAX_BYTES // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{data[error.start]:02x}"
        raise DocumentError(f"{name}, line {line}: must be UTF-8, got {got}") from None
    if not text.strip():
        raise DocumentError(f"{name}, line 1: must be a JSON object, got an empty file")
    try:
        return Node(name, text, (), _DECODER.decode(text))
    except json.JSONDecodeError as error:
        place = f"{name}, line {error.lineno}, column {error.colno}"
        raise DocumentError(f"{place}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise DocumentError(f"{name}: is nested too deeply") from None


def is_number(value: Any) -> bool:
    """Whether a parsed value is a number; in Python booleans are integers, in JSON they are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """A parsed value in a few words, on one line.

    Args:
        value: what the parser returned.

    Returns:
        Its JSON if that is short, otherwise what kind it is.

    Examples:
        >>> describe(True), describe([1, 2]), describe({})
        ('true', 'a list of 2', 'an object')
    """
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return _printable(json.dumps(value), _SHOWN)


def _printable(text: str, limit: int = _SHOWN) -> str:
    quoted = ascii(text)[1:-1]
    return quoted if len(quoted) <= limit else quoted[:limit] + "..."


def _check_shape(node: Node, shape: list[int]) -> None:
    if not shape:
        node.number()
        return
    items = node.items()
    if len(items) != shape[0]:
        node.refuse(f"must have {shape[0]} items, like the first of its kind, got {len(items)}")
    if len(shape) > 1:
        for i in range(len(items)):
            _check_shape(node.at(i), shape[1:])
        return
    for i, item in enumerate(items):
        if not is_number(item):
            node.at(i).number()


def _line(text: str, path: tuple[str | int, ...]) -> int:
    """Line of the value at a path in a valid document; of the nearest above where there is none."""
    position = _skip_space(text, 0)
    for step in path:
        child = _child(text, position, step)
        if child is None:
            break
        position = child
    return text.count("\n", 0, position) + 1


def _child(text: str, start: int, step: str | int) -> int | None:
    """Position of a member of the object or list that starts at ``start``; its last if twice."""
    opening, found, count = text[start], None, 0
    if opening not in "{[":
        return None
    position = _skip_space(text, start + 1)
    while text[position] not in "}]":
        key: str | int = count
        if opening == "{":
            key, position = _DECODER.raw_decode(text, position)
            position = _skip_space(text, _skip_space(text, position) + 1)
        if key == step:
            found = position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_space(text, position)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
        count += 1
    return found


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
