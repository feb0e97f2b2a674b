"""Plain values converted to the types of a frozen dataclass, with messages that say what to type.

The types are those of the configurations: numbers, texts, booleans, None, literals, lists,
dictionaries, other dataclasses, and unions of them.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
MAX_WHOLE_NUMBER = 2**63
"""Whole numbers must be smaller than this."""
MAX_SHOWN = 80
"""Characters of a value that a message shows."""


class ConfigError(ValueError):
    """A value that its key does not accept. The message names the key and the rule."""


def build(cls: type[T], values: Any, key: str = "") -> T:
    """Build a dataclass from plain values.

    Args:
        cls: a dataclass.
        values: a mapping of field names to plain values.
        key: dotted key of the dataclass; empty for the outermost.

    Returns:
        The dataclass.

    Raises:
        ValueError: if a key is unknown or missing, or a value has another type or is out of range.
    """
    shorthand = getattr(cls, "SHORTHAND", None)  # the one field that text stands for
    if shorthand is not None and isinstance(values, str):
        values = {shorthand: values}
    if not isinstance(values, Mapping):
        raise ConfigError(_refusal(key, "must be a mapping of keys to values", values))
    hints = field_types(cls)
    unknown = next((name for name in values if name not in hints), None)
    if unknown is not None:
        within = f" in `{key}`" if key else ""
        raise ConfigError(f"unknown key `{unknown}`{within}{suggestion(cls, unknown, key)}")
    for item in dataclasses.fields(typing.cast("Any", cls)):
        has_default = (
            item.default is not dataclasses.MISSING
            or item.default_factory is not dataclasses.MISSING
        )
        if item.init and not has_default and item.name not in values:
            raise ConfigError(f"`{_join(key, item.name)}` is missing")
    return cls(
        **{name: convert(hints[name], value, _join(key, name)) for name, value in values.items()}
    )


def convert(hint: Any, value: Any, key: str) -> Any:
    """Convert a plain value to a type.

    Args:
        hint: the type.
        value: the plain value.
        key: dotted key of the value, for the message.

    Returns:
        The converted value: a whole number becomes a float where a float is wanted, a mapping
        becomes a dataclass, and everything else keeps its type.

    Raises:
        ValueError: if the type does not accept the value.
    """
    members = _members(hint)
    if len(members) > 1:
        return _convert_union(members, value, key)
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        return (
            value
            if isinstance(value, typing.cast("Any", hint))
            else build(typing.cast("Any", hint), value, key)
        )
    if origin is list and isinstance(value, list | tuple):
        (item,) = typing.get_args(hint) or (Any,)
        return [convert(item, each, f"{key}[{index}]") for index, each in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        item = (*typing.get_args(hint), Any, Any)[1]
        return {name: convert(item, each, _join(key, name)) for name, each in value.items()}
    if origin is Literal and value in typing.get_args(hint) and not isinstance(value, bool):
        return value
    if origin is collections.abc.Callable and callable(value):
        return value
    if hint is Any or (hint is type(None) and value is None):
        _check_any(value, key)
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = _to_float(value)
    if type(value) is hint:
        _check_range(value, key)
        return value
    raise ConfigError(_refusal(key, f"must be {describe(hint)}", value) + _hint_for(hint, value))


def to_plain(value: Any) -> Any:
    """Return a configuration as plain values, from which :func:`build` makes it again.

    Args:
        value: a dataclass, a container of such, or a plain value. An object with a text
            ``reference`` is written as that text.

    Returns:
        Mappings, lists and plain values.

    Examples:
        >>> to_plain([dataclasses.make_dataclass("Sizes", ["seeds"])(3)])
        [{'seeds': 3}]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: to_plain(getattr(value, item.name)) for item in fields if item.init}
    reference = getattr(value, "reference", None)
    if isinstance(reference, str):
        return reference
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def describe(hint: Any, *, plural: bool = False) -> str:
    """Describe the values that a type accepts.

    Args:
        hint: the type.
        plural: whether to use the plural, as in a list of them.

    Returns:
        A noun phrase.

    Examples:
        >>> describe(list[int] | None)
        'a list of whole numbers, or null'
    """
    members = _members(hint)
    if len(members) > 1:
        texts = list(dict.fromkeys(describe(member, plural=plural) for member in members))
        return ", ".join(texts[:-1]) + f", or {texts[-1]}"
    origin = typing.get_origin(hint) or hint
    if origin is Literal:
        names = ", ".join(map(_shown, typing.get_args(hint)))
        return names if len(typing.get_args(hint)) == 1 else f"one of {names}"
    if origin is list:
        (item,) = typing.get_args(hint) or (Any,)
        return ("lists of " if plural else "a list of ") + describe(item, plural=True)
    singular, several = _NOUNS.get(origin, _NOUNS[dict])
    return several if plural else singular


_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "nulls"),
    dict: ("a mapping of keys to values", "mappings of keys to values"),
    collections.abc.Callable: ("a function", "functions"),
    Any: ("a value", "values"),
}


def type_of_key(cls: Any, dotted: str) -> Any:
    """Return the type of a dotted key.

    Args:
        cls: the outermost dataclass.
        dotted: the key, such as ``"trainer.max_steps"``.

    Returns:
        The type; ``Any`` below a dictionary.

    Raises:
        ValueError: if there is no such key.
    """
    hint: Any = cls
    names = dotted.split(".")
    for index, name in enumerate(names):
        inner = next((m for m in _members(hint) if dataclasses.is_dataclass(m)), None)
        if inner is not None:
            if name not in field_types(inner):
                raise ConfigError(f"unknown key `{dotted}`{suggestion(cls, dotted, '')}")
            hint = field_types(inner)[name]
        elif any((typing.get_origin(m) or m) in (dict, Any) for m in _members(hint)):
            known = [key for key in dotted_keys(cls) if key.startswith(f"{names[0]}.")]
            if known and index == 1 and dotted not in known:
                raise ConfigError(f"unknown key `{dotted}`{suggestion(cls, dotted, '')}")
            return Any
        else:
            parent = ".".join(names[:index])
            raise ConfigError(f"unknown key `{dotted}`: `{parent}` is {describe(hint)}")
    return hint


def is_section(hint: Any) -> bool:
    """Return whether the values of a type are dataclasses, whose keys are fixed.

    Args:
        hint: the type.
    """
    return any(dataclasses.is_dataclass(member) for member in _members(hint))


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass by name.

    Args:
        cls: a dataclass.
    """
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls) if item.init}


def dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Yield all keys of a dataclass and of those inside it, with dots.

    Args:
        cls: a dataclass. A field whose metadata has ``keys_of`` names a dataclass whose fields are
            the keys of its dictionary.
        prefix: key of the dataclass.

    Yields:
        Keys, outer ones first.
    """
    types_by_name = field_types(cls)
    for item in dataclasses.fields(cls):
        key = _join(prefix, item.name)
        yield key
        inner = [m for m in _members(types_by_name.get(item.name)) if dataclasses.is_dataclass(m)]
        if "keys_of" in item.metadata:
            inner.append(item.metadata["keys_of"])
        for each in inner:
            yield from dotted_keys(each, key)


def suggestion(cls: Any, unknown: str, key: str) -> str:
    """Return a question that names the key that may have been meant.

    Args:
        cls: the dataclass that does not have the key.
        unknown: the key, perhaps with dots.
        key: dotted key of the dataclass.

    Returns:
        ``": did you mean `...`?"``; without a similar key, the list of the keys.
    """
    known = list(dotted_keys(cls))
    parent, _, leaf = unknown.lower().replace("-", "_").rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    # Keys beside the unknown one come first, then outer ones.
    for names in (beside, known):
        by_leaf = {name.rpartition(".")[2]: name for name in reversed(names)}
        for cutoff in (1.0, 0.7):
            found = difflib.get_close_matches(leaf, by_leaf, 1, cutoff)
            if found:
                return f": did you mean `{_join(key, by_leaf[found[0]])}`?"
    return f": the keys are {', '.join(beside or field_types(cls))}"


def _convert_union(members: tuple[Any, ...], value: Any, key: str) -> Any:
    """Convert a value to the first member of a union that accepts it."""
    exact = [m for m in members if m is type(value) or (m is type(None) and value is None)]
    container = [m for m in members if _is_container_for(m, value)]
    errors = []
    for member in (*exact, *container, *members):
        try:
            return convert(member, value, key)
        except ValueError as error:
            errors.append(error)
    # The member of the same shape gives the best message: a wrong item of a list, a wrong key.
    if exact or container:
        raise errors[0]
    hint = Union[members]  # noqa: UP007  # built at run time
    raise ConfigError(_refusal(key, f"must be {describe(hint)}", value) + _hint_for(hint, value))


def _is_container_for(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if isinstance(value, Mapping):
        return origin is dict or dataclasses.is_dataclass(hint)
    return isinstance(value, list | tuple) and origin is list


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _to_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_range(value: Any, key: str) -> None:
    """Refuse numbers that no computation can use, and paths that a shell would have expanded."""
    if type(value) is int and abs(value) >= MAX_WHOLE_NUMBER:
        raise ConfigError(_refusal(key, "must be a whole number below 2^63", value))
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(_refusal(key, "must be a finite number", value))
    if type(value) is str:
        found = re.match(r"~[\w.-]*(?=/|$)|\$(\w+|\{\w+\})", value)
        if found:
            raise ConfigError(
                f"`{key}` is not expanded, got {_shown(value)}: write the path instead of "
                f"{found[0]}"
            )


def _check_any(value: Any, key: str) -> None:
    """Refuse whole numbers that are too large, at any depth."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_any(item, _join(key, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_any(item, f"{key}[{index}]")
    elif type(value) is int:
        _check_range(value, key)


def _refusal(key: str, rule: str, value: Any) -> str:
    return f"`{key}` {rule}, got {_shown(value)}" if key else f"{rule}, got {_shown(value)}"


def _shown(value: Any) -> str:
    """Return a value as YAML writes it, cut to a reasonable length."""
    constants = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return constants[value]
    if type(value) is int and abs(value) >= 10**MAX_SHOWN:
        return f"a number of {len(str(abs(value)))} digits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _hint_for(hint: Any, value: Any) -> str:
    """Return what to type instead of a value that is a frequent mistake."""
    members = _members(hint)
    kinds = {typing.get_origin(member) or member for member in members}
    if isinstance(value, str) and kinds & {int, float}:
        text = value.strip().replace("_", "").replace(",", "")
        if re.fullmatch(r"[-+]?0\d+", text):
            return ": write the number without leading zeros"
        if re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", text):
            return f": write {text}"
    if bool in kinds and str(value).lower() in ("yes", "on", "y", "1"):
        return ": write true"
    if bool in kinds and str(value).lower() in ("no", "off", "n", "0"):
        return ": write false"
    if int in kinds and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f": write {int(value)}"
    if list in kinds and not isinstance(value, Mapping):
        return f": write [{_shown(value)}]"
    if str in kinds and isinstance(value, int | float | bool):
        return f": write '{_shown(value)}' in quotes"
    return ""


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
