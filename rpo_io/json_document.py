"""JSON documents whose errors name the file, the line and the field.

Python's parser reports positions for syntax errors only, accepts duplicate keys and ``NaN``, and
reads ``true`` as the number 1. Here every value knows its path in the document; when a value breaks
a rule, the text is scanned again to find the line of that path.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

MAX_BYTES = 64 * 2**20
"""Maximum size of a document in bytes; it holds every pair of 2,000 actions."""

_SPACE = re.compile(r"[ \t\n\r]*")
_EXACT_DIGITS = 18
_SHOWN = 40


class DocumentError(ValueError):
    """An error in a document: one line with the file, the line, the field and the rule."""


class _Object(dict[str, Any]):
    """A JSON object that records a key that occurs twice."""

    duplicate: str | None = None

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.duplicate = next(key for key, count in counts.items() if count > 1)


def _whole_number(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; a float of them is infinite, refused later.
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_whole_number)


class Node(NamedTuple):
    """A value in a document, with its path.

    Attributes:
        name: name of the file, used in errors.
        text: text of the document; empty for a document that was built from Python values.
        path: keys and indices from the root to the value.
        value: the parsed value.
    """

    name: str
    text: str
    path: tuple[str | int, ...]
    value: Any

    def at(self, step: str | int) -> Node:
        """Return a member of an object or an item of a list."""
        return self._replace(path=(*self.path, step), value=self.value[step])

    def refuse(self, rule: str, *below: str | int) -> NoReturn:
        """Raise the error for a rule that this value, or a value below it, breaks."""
        path = (*self.path, *below)
        field = "".join(f"[{s}]" if isinstance(s, int) else f".{_printable(s)}" for s in path)
        line = f", line {_line(self.text, path)}" if self.text else ""
        location = f"{self.name}{line}: "
        raise DocumentError(location + (f"`{field.lstrip('.')}` " if field else "") + rule)

    def members(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Node]:
        """Return the members of an object; refuse missing, unknown and duplicate keys."""
        if not isinstance(self.value, _Object):
            self.refuse(f"must be an object, got {describe(self.value)}")
        if self.value.duplicate is not None:
            self.refuse("occurs twice: keep one", self.value.duplicate)
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

    def one_of(self, options: Iterable[str]) -> str:
        """Return a string that must be one of ``options``."""
        if not isinstance(self.value, str) or self.value not in options:
            listed = " or ".join(json.dumps(option) for option in options)
            self.refuse(f"must be {listed}, got {describe(self.value)}")
        return self.value

    def items(self) -> list[Any]:
        """Return the items of a list."""
        if not isinstance(self.value, list):
            self.refuse(f"must be a list, got {describe(self.value)}")
        return self.value

    def number(self) -> float:
        """Return a number; booleans and strings are refused."""
        if not is_number(self.value):
            self.refuse(f"must be a number, got {describe(self.value)}")
        return float(self.value)

    def numbers(self, ndim: int) -> np.ndarray:
        """Return nested lists of equal lengths as a float64 array with ``ndim`` axes."""
        shape, first = [], self
        for _ in range(ndim):
            if not first.items():
                first.refuse("must not be empty")
            shape.append(len(first.value))
            first = first.at(0)
        _check_shape(self, shape)
        return np.array(self.value, np.float64)


def load_document(path: str) -> Node:
    """Read a JSON document from a file, or from standard input.

    Args:
        path: path of the file; ``-`` for standard input.

    Returns:
        The root of the document.

    Raises:
        DocumentError: if the document is too large, not UTF-8 or not JSON.
        OSError: if the file cannot be read.
    """
    if path == "-":
        return parse_document(sys.stdin.buffer.read(MAX_BYTES + 1), name="standard input")
    with open(path, "rb") as file:
        return parse_document(file.read(MAX_BYTES + 1), name=path)


def parse_document(data: bytes, *, name: str) -> Node:
    """Parse a JSON document.

    Args:
        data: the document, encoded in UTF-8.
        name: name of the file, used in errors.

    Returns:
        The root of the document.

    Raises:
        DocumentError: if the document is too large, not UTF-8 or not JSON.

    Examples:
        >>> parse_document(b'{"beta": 0.1}', name="p.json").at("beta").number()
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
        location = f"{name}, line {error.lineno}, column {error.colno}"
        raise DocumentError(f"{location}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise DocumentError(f"{name}: is nested too deeply") from None


def document_from_values(values: Any, *, name: str) -> Node:
    """Return the document that Python values stand for; its errors name no line.

    Args:
        values: mappings, lists, tuples, arrays, numbers and strings.
        name: name of the document, used in errors.

    Returns:
        The root of the document.

    Raises:
        DocumentError: if a value is of another kind, or a key is not a string.

    Examples:
        >>> document_from_values({"eta": np.ones(2)}, name="problem").at("eta").value
        [1.0, 1.0]
    """
    root = Node(name, "", (), None)
    try:
        return root._replace(value=_plain(root, values))
    except RecursionError:
        raise DocumentError(f"{name}: is nested too deeply") from None


def _plain(node: Node, value: Any) -> Any:
    """Return a Python value as the parser would have read it."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                node.refuse(f"must have strings as keys, got {_printable(repr(key))}")
        below = {key: node._replace(path=(*node.path, key)) for key in value}
        return _Object([(key, _plain(below[key], item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        if all(type(item) in (int, float) for item in value):
            return [_whole(item) for item in value]
        steps = enumerate(value)
        return [_plain(node._replace(path=(*node.path, i)), item) for i, item in steps]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return _whole(value)
    if np.ma.is_masked(value):
        node.refuse("must not have masked entries: give numbers")
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        kind = type(value).__name__
        node.refuse(f"must be a number, a string, a list, an array or a mapping, got {kind}")
    return array.tolist()


def _whole(value: int | float) -> int | float:
    """Return a number, or infinity if it is too large for float64: it is refused later."""
    return value if abs(value) < 2**63 or isinstance(value, float) else float("inf")


def is_number(value: Any) -> bool:
    """Return whether a parsed value is a JSON number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """Describe a parsed value on one line, for error messages.

    Args:
        value: a parsed value.

    Returns:
        The JSON text of a short value, otherwise the kind and size of the value.

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
        node.refuse(
            f"must have {shape[0]} items like the first list of this level, got {len(items)}"
        )
    if len(shape) > 1:
        for i in range(len(items)):
            _check_shape(node.at(i), shape[1:])
        return
    for i, item in enumerate(items):
        if not is_number(item):
            node.at(i).number()


def _line(text: str, path: tuple[str | int, ...]) -> int:
    """Return the line of the value at a path, or of its nearest existing parent."""
    position = _skip_space(text, 0)
    for step in path:
        child = _child(text, position, step)
        if child is None:
            break
        position = child
    return text.count("\n", 0, position) + 1


def _child(text: str, start: int, step: str | int) -> int | None:
    """Return the position of a member of the object or list at ``start``, the last if repeated."""
    opening, child, count = text[start], None, 0
    if opening not in "{[":
        return None
    position = _skip_space(text, start + 1)
    while text[position] not in "}]":
        key: str | int = count
        if opening == "{":
            key, position = _DECODER.raw_decode(text, position)
            position = _skip_space(text, _skip_space(text, position) + 1)
        if key == step:
            child = position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_space(text, position)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
        count += 1
    return child


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
