"""Strings that remember which of their characters come from the inputs of a chat template.

A template joins, trims, splits and formats the contents of messages. The operations here return the
values that ``str`` returns, together with the origins of their characters. An operation that cannot
be followed character by character marks its whole result. This module imports nothing of the
package, since it runs in the process that renders templates.
"""

from __future__ import annotations

import functools
import itertools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex, cast

Spans = tuple[tuple[int, int, str], ...]
"""Ranges of characters and their origins: start, end and the path of the input."""


class TrackedText(str):
    """A string with the origins of its characters.

    Args:
        text: the characters.
        spans: ranges of characters that come from an input, in order.

    Examples:
        >>> text = "<user>" + TrackedText(" hi ", ((0, 4, "0.content"),)).strip() + "</user>"
        >>> text, text.get_spans()
        ('<user>hi</user>', ((6, 8, '0.content'),))
    """

    _spans: Spans

    def __new__(cls, text: str = "", spans: Spans = ()) -> TrackedText:
        """Create the string."""
        self = super().__new__(cls, text)
        self._spans = spans
        return self

    def get_spans(self) -> Spans:
        """Return the ranges of characters that come from an input.

        Returns:
            Start, end and origin of each range, in order.
        """
        return self._spans

    def __str__(self) -> TrackedText:
        """Return the string itself, which the output of a template keeps."""
        return self

    def __add__(self, other: str) -> TrackedText:
        """Append a string."""
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> TrackedText:
        """Prepend a string."""
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> TrackedText:
        """Repeat the string."""
        return concat([self] * max(0, count.__index__()))

    def __rmul__(self, count: SupportsIndex) -> TrackedText:
        """Repeat the string."""
        return self * count

    def __mod__(self, values: Any) -> TrackedText:
        """Format values by ``%``."""
        return follow(lambda text, items: str.__mod__(text, items), self, values)

    def __iter__(self) -> Iterator[TrackedText]:
        """Yield the characters."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> TrackedText:
        """Return a character or a slice."""
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            start, _, step = key.indices(len(self))
            if step != 1:
                return concat([self[index] for index in range(*key.indices(len(self)))])
        else:
            start = range(len(self))[key.__index__()]
        return self._cut(start, text)

    def strip(self, chars: str | None = None, /) -> TrackedText:
        """Remove characters at both ends."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> TrackedText:
        """Remove characters at the start."""
        text = str.lstrip(self, chars)
        return self._cut(len(self) - len(text), text)

    def rstrip(self, chars: str | None = None, /) -> TrackedText:
        """Remove characters at the end."""
        return self._cut(0, str.rstrip(self, chars))

    def removeprefix(self, prefix: str, /) -> TrackedText:
        """Remove a prefix."""
        text = str.removeprefix(self, prefix)
        return self._cut(len(self) - len(text), text)

    def removesuffix(self, suffix: str, /) -> TrackedText:
        """Remove a suffix."""
        return self._cut(0, str.removesuffix(self, suffix))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[TrackedText]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Split at a separator, or at whitespace."""
        return self._pieces(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[TrackedText]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Split at a separator, from the end."""
        return self._pieces(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[TrackedText]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Split into lines."""
        lines = self._pieces(str.splitlines(self, keepends=True), "")
        if keepends:
            return lines
        return [line._cut(0, text) for line, text in zip(lines, str.splitlines(self), strict=True)]

    def partition(self, sep: str, /) -> tuple[TrackedText, TrackedText, TrackedText]:
        """Split at the first separator."""
        first, middle, last = self._pieces(list(str.partition(self, sep)), "")
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[TrackedText, TrackedText, TrackedText]:
        """Split at the last separator."""
        first, middle, last = self._pieces(list(str.rpartition(self, sep)), "")
        return first, middle, last

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> TrackedText:
        """Replace a string by another."""
        if not old:
            return self._marked(str.replace(self, old, new, count))
        return join(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> TrackedText:
        """Join strings."""
        return join(self, parts)

    def _cut(self, start: int, text: str) -> TrackedText:
        """Return the characters of ``text``, which begin at ``start`` here."""
        end = start + len(text)
        spans = (
            (max(first, start) - start, min(last, end) - start, origin)
            for first, last, origin in self._spans
            if max(first, start) < min(last, end)
        )
        return TrackedText(text, tuple(spans))

    def _pieces(self, texts: list[str], separator: str | None) -> list[TrackedText]:
        """Return pieces that follow one another, with the separator between them."""
        pieces: list[TrackedText] = []
        start = 0
        for text in texts:
            if separator is None:
                start = str.find(self, text, start)
            pieces.append(self._cut(start, text))
            start += len(text) + len(separator or "")
        return pieces

    def _marked(self, text: str) -> TrackedText:
        """Return another text, all of whose characters have the first origin of this one."""
        return mark(text, self)


def _follow_case(name: str) -> Callable[[TrackedText], TrackedText]:
    change = getattr(str, name)

    @functools.wraps(change)
    def changed(self: TrackedText) -> TrackedText:
        text = change(self)
        same = len(text) == len(self)
        return TrackedText(text, self.get_spans()) if same else mark(text, self)

    return changed


def _mark_result(name: str) -> Callable[..., TrackedText]:
    method = getattr(str, name)

    @functools.wraps(method)
    def marked(self: TrackedText, *args: Any) -> TrackedText:
        return mark(method(self, *args), [self, *args])

    return marked


for _name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper"):
    setattr(TrackedText, _name, _follow_case(_name))
for _name in ("center", "expandtabs", "ljust", "rjust", "translate", "zfill"):
    setattr(TrackedText, _name, _mark_result(_name))


def concat(parts: Iterable[str]) -> TrackedText:
    """Concatenate strings.

    Args:
        parts: strings, tracked or not.

    Returns:
        The text with the origins of its parts.

    Examples:
        >>> concat(["a", TrackedText("b", ((0, 1, "x"),))]).get_spans()
        ((1, 2, 'x'),)
    """
    texts: list[str] = []
    spans: list[tuple[int, int, str]] = []
    length = 0
    for part in parts:
        for first, last, origin in part.get_spans() if isinstance(part, TrackedText) else ():
            if spans and spans[-1][1:] == (length + first, origin):
                spans[-1] = (spans[-1][0], length + last, origin)
            else:
                spans.append((length + first, length + last, origin))
        texts.append(str.__str__(part))
        length += len(part)
    return TrackedText("".join(texts), tuple(spans))


def join(separator: str, parts: Iterable[str]) -> TrackedText:
    """Join strings with a separator.

    Args:
        separator: string between the parts.
        parts: strings, tracked or not.

    Returns:
        The text with the origins of its parts.

    Examples:
        >>> join(", ", ["a", TrackedText("b", ((0, 1, "x"),))]).get_spans()
        ((3, 4, 'x'),)
    """
    pairs = ((separator, part) for part in parts)
    return concat(itertools.islice(itertools.chain.from_iterable(pairs), 1, None))


def track(value: Any, origin: str) -> Any:
    """Track all strings in a JSON value.

    Args:
        value: a JSON value; keys of objects are tracked as well.
        origin: origin of the strings.

    Returns:
        The same value with tracked strings.

    Examples:
        >>> track({"a": [1, "b"]}, "x")["a"][1].get_spans()
        ((0, 1, 'x'),)
    """
    if isinstance(value, str):
        return TrackedText(value, ((0, len(value), origin),) if value else ())
    if isinstance(value, list):
        return [track(item, origin) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {track(key, origin): track(item, origin) for key, item in items}
    return value


def origins_of(value: Any) -> Iterator[str]:
    """Yield the origins of the tracked strings in a value.

    Args:
        value: a string, or lists, tuples and mappings of values.

    Yields:
        The origins.

    Examples:
        >>> list(origins_of([TrackedText("b", ((0, 1, "x"),))]))
        ['x']
    """
    if isinstance(value, TrackedText):
        yield from (origin for _, _, origin in value.get_spans())
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from origins_of(item)
    elif isinstance(value, dict):
        yield from origins_of(
            list(itertools.chain.from_iterable(cast("dict[Any, Any]", value).items()))
        )


def mark(text: str, sources: Any) -> TrackedText:
    """Give a whole text the first origin that occurs in the values it was made of.

    Args:
        text: the text.
        sources: the values.

    Returns:
        The tracked text.

    Examples:
        >>> mark("bb", TrackedText("b", ((0, 1, "x"),))).get_spans()
        ((0, 2, 'x'),)
    """
    origin = next(origins_of(sources), None)
    return TrackedText(text, () if origin is None or not text else ((0, len(text), origin),))


def follow(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function of strings with placeholders, which are then replaced by the strings.

    Args:
        function: a function that copies strings into its result.
        values: its arguments.

    Returns:
        The result with the origins of the strings; wholly marked if the function does more than
        copy them.

    Examples:
        >>> follow("<{}>".format, TrackedText("b", ((0, 1, "x"),))).get_spans()
        ((1, 2, 'x'),)
    """
    result = function(*values)
    if not isinstance(result, str) or next(origins_of(values), None) is None:
        return result
    key = secrets.token_hex(8)
    texts: list[str] = []
    try:
        parts = function(*_with_placeholders(values, key, texts)).split(key)
    except (ValueError, TypeError, LookupError, AttributeError):
        return mark(result, values)
    # Between two keys stands the index of a string.
    copied = concat(texts[int(part)] if i % 2 else part for i, part in enumerate(parts))
    return copied if copied == result else mark(result, values)


def dump_json(value: Any, **options: Any) -> TrackedText:
    """Format JSON and keep the origins of its strings.

    Args:
        value: a JSON value, with tracked strings or without.
        options: options of :func:`json.dumps`.

    Returns:
        The text.

    Examples:
        >>> dump_json({"a": TrackedText("b", ((0, 1, "x"),))})
        '{"a": "b"}'
    """
    plain = json.dumps(value, **options)
    if next(origins_of(value), None) is None:
        return TrackedText(plain)
    key = secrets.token_hex(8)
    texts: list[str] = []
    ordered = _sorted_keys(value) if options.pop("sort_keys", False) else value
    parts = json.dumps(_with_placeholders(ordered, key, texts), **options).split(key)

    def escape(text: str) -> TrackedText:
        ensure_ascii = options.get("ensure_ascii", True)
        escaped = json.dumps(str.__str__(text), ensure_ascii=ensure_ascii)[1:-1]
        return mark(escaped, text)

    copied = concat(escape(texts[int(part)]) if i % 2 else part for i, part in enumerate(parts))
    return copied if copied == plain else mark(plain, value)


def _with_placeholders(value: Any, key: str, texts: list[str]) -> Any:
    """Replace tracked strings by ``key index key``, and append them to ``texts``."""
    if isinstance(value, TrackedText):
        texts.append(value)
        return f"{key}{len(texts) - 1}{key}"
    if isinstance(value, tuple):
        return tuple(
            _with_placeholders(item, key, texts) for item in cast("tuple[Any, ...]", value)
        )
    if isinstance(value, list):
        return [_with_placeholders(item, key, texts) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {
            _with_placeholders(name, key, texts): _with_placeholders(item, key, texts)
            for name, item in cast("dict[Any, Any]", value).items()
        }
    return value


def _sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _sorted_keys(item) for key, item in sorted(items)}
    if isinstance(value, list | tuple):
        return [_sorted_keys(item) for item in cast("list[Any]", value)]
    return value
