"""Configurations: frozen dataclasses from YAML files, with overrides by dotted keys.

Unknown keys, wrong types, repeated keys and YAML tags are refused in one line that names file and
key. YAML is read as plain data: no tag constructs an object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import numpy as np

from rpo_io.config_types import (
    ConfigError,
    build,
    convert,
    field_types,
    is_section,
    to_plain,
    type_of_key,
)
from rpo_io.locations import parse_location
from rpo_io.user_modules import add_module_folder

from .yaml_files import format_yaml, parse_yaml, read_yaml

Config = TypeVar("Config")
_KEYS_OF_COMMANDS = {
    "train": ("model", "data", "objective", "trainer"),
    "study": ("methods", "seeds", "design"),
    "solve": ("reward_class", "reference_policy", "context_weights"),
}
"""Keys that only the files of a command have."""


def read_config(
    path: str | os.PathLike[str], cls: type[Config], overrides: Sequence[str] = ()
) -> Config:
    """Read a configuration file, apply the overrides of a command line, and validate the result.

    Args:
        path: path of a YAML file, also one in a bucket or on the hub.
        cls: a frozen dataclass; its fields may be dataclasses.
        overrides: words of the command line, ``--key.key value`` or ``--key.key=value``.

    Returns:
        The configuration.

    Raises:
        ValueError: if the file or an override is invalid; the message names the key.
        OSError: if the file cannot be read.
    """
    values = _read_file(path, cls)
    seen = set()
    for key, word in _split_overrides(overrides):
        if key in seen:
            raise ValueError(f"argument --{key}: is given twice")
        seen.add(key)
        try:
            _override(values, cls, key, word)
        except ConfigError as error:
            rule = str(error).removeprefix(f"`{key}` ")
            raise ValueError(f"argument --{key}: {rule}") from error
    return _build(values, cls, source=str(path))


def read_kind(path: str | os.PathLike[str]) -> Any:
    """Return the key ``kind`` of a configuration file, which selects its dataclass.

    Args:
        path: path of a YAML file, also one in a bucket or on the hub.

    Returns:
        The value; None without the key.

    Raises:
        ValueError: if the file is no YAML mapping.
        OSError: if the file cannot be read.
    """
    return read_yaml(path).get("kind")


def load_config(
    source: str | os.PathLike[str] | Config,
    cls: type[Config],
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Return a configuration, from a file or from an object, with some of its keys changed.

    Args:
        source: path of a YAML file, or a configuration.
        cls: class of the configuration: a frozen dataclass.
        overrides: new values by dotted key, such as ``{"objective.eta": 0.1}``. Values may be
            numbers, strings, lists, mappings, NumPy arrays and None.

    Returns:
        The configuration.

    Raises:
        ValueError: if the file or an override is invalid; the message names the key.
        OSError: if the file cannot be read.
    """
    if isinstance(source, cls):
        if not overrides:
            return source
        name, values = cls.__name__, dataclasses.asdict(cast("Any", source))
    else:
        path = cast("str", source)
        name, values = str(path), _read_file(path, cls)
    for key, value in (overrides or {}).items():
        try:
            _override(values, cls, key, _to_word(value))
        except ConfigError as error:
            raise ValueError(f"{name}: {error}") from error
    return _build(values, cls, source=name)


def to_yaml(config: Any) -> bytes:
    """Format a configuration as YAML, with all keys.

    Args:
        config: a dataclass.

    Returns:
        The text in UTF-8; :func:`read_config` reads it back.
    """
    return format_yaml(to_plain(config))


def _read_file(path: str | os.PathLike[str], cls: type) -> dict[str, Any]:
    """Read a mapping from a YAML file; refuse the file of another command."""
    values = read_yaml(path)
    location = parse_location(str(path))
    if location.is_local:  # modules that the configuration names may lie beside it
        add_module_folder(location.local.parent)
    for command, keys in _KEYS_OF_COMMANDS.items():
        foreign = [key for key in keys if key in values and key not in field_types(cls)]
        if foreign:
            raise ValueError(
                f"{path}: unknown key `{foreign[0]}`, which files of `rpo {command}` have: type "
                f"`rpo {command} {path}`"
            )
    return values


def _build(values: dict[str, Any], cls: type[Config], *, source: str) -> Config:
    """Build a configuration from plain values."""
    try:
        return build(cls, values)
    except (ValueError, TypeError, OverflowError) as error:
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ValueError(f"{source}: {text}") from error


def _split_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the keys and values of ``--key value`` and ``--key=value``."""
    pairs = []
    remaining = iter(arguments)
    for word in remaining:
        if not re.match(r"--\w", word):
            raise ValueError(f"unrecognized argument {word!r}: overrides are --KEY VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(remaining, None)
            if following is None:
                raise ValueError(f"argument --{key}: a value must follow")
            value = following
        pairs.append((key, value))
    return pairs


def _override(values: dict[str, Any], cls: Any, key: str, word: str) -> None:
    """Replace one value, given by its dotted key and the word of a command line.

    A mapping replaces a dictionary as a whole; of a section, it replaces the keys that it names.
    """
    hint = type_of_key(cls, key)
    value = _read_word(hint, word, key)
    *parents, name = key.split(".")
    inner = values
    for parent in parents:
        if inner.get(parent) is None:
            inner[parent] = {}
        inner = inner[parent]
        if not isinstance(inner, dict):
            raise ConfigError(f"`{key}` must be below a mapping, but `{parent}` is none")
    if is_section(hint) and isinstance(value, dict) and isinstance(inner.get(name), dict):
        inner[name] = {**inner[name], **value}
    else:
        inner[name] = value


def _read_word(hint: Any, word: str, key: str) -> Any:
    """Return the plain value that a word of a command line stands for, given its type.

    Where text is wanted, a word such as 014 or [a] stays as it is.
    """
    try:
        value = parse_yaml(word)
        convert(hint, value, key)
    except ConfigError as error:
        return _read_text(hint, word, key, error)
    except ValueError as error:  # not YAML
        return _read_text(
            hint, word, key, ConfigError(f"`{key}` cannot be read: {str(error).strip()}")
        )
    return value


def _read_text(hint: Any, word: str, key: str, error: ConfigError) -> str:
    """Return a word if it is accepted as text; raise the error otherwise."""
    if hint is not Any:
        with suppress(ConfigError):
            return convert(hint, word, key)
    raise error


def _to_word(value: Any) -> str:
    """Return a value as one word of YAML; JSON is YAML."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return json.dumps(plain, default=os.fspath)
