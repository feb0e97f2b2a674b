"""Configurations: frozen dataclasses from YAML files, with overrides by dotted keys.

Unknown keys, wrong types, repeated keys and YAML tags are refused in one line that names file and
key. YAML is read as plain data: no tag constructs an object.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import yaml
from jsonargparse import ArgumentError, ArgumentParser

Config = TypeVar("Config")
MAX_BYTES = 100_000
"""Largest configuration file; the parser reads about 50,000 bytes per second."""
_REWORDED = (
    (r"\bconfig\.(?=\w)", ""),
    (r"Problem with given class_path '[\w.]+': ", ""),
    (r"(Group|Key) '[\w.]+' does not accept option '([\w.]+)'", r"unknown key `\2`"),
    (r"Option '([\w.]+)' is not accepted", r"unknown key `\1`"),
    (r'Parser key "([\w.]+)":', r"`\1`:"),
    (r"<class '(\w+)'>", r"\1"),
    (r"typing\.", ""),
    (
        r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors:",
        "must be one of these:",
    ),
    (r"the following arguments are required: ([\w.]+).*", r"`\1` is missing"),
    (r"unrecognized arguments:", "unknown key in the overrides:"),
)
"""Patterns in jsonargparse's messages, and what replaces them."""


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases or repeated keys, in which 5e-7 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping whose keys are strings and occur once."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _error_at(key_node, f"key {key!r} must be a string")
            if key in seen:
                raise _error_at(key_node, f"key `{key}` is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, but no alias: one line of aliases can expand to a billion nodes."""
        if self.check_event(yaml.AliasEvent):
            raise _error_at(self.peek_event(), "aliases (*name) are not allowed")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_config(path: Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, apply the overrides of a command line, and validate the result.

    Args:
        path: path of a YAML file.
        cls: a frozen dataclass; its fields may be dataclasses.
        overrides: words of the command line, ``--key.key value`` or ``--key.key=value``.

    Returns:
        The configuration.

    Raises:
        ValueError: if the file or an override is invalid; the message names the key.
        OSError: if the file cannot be read.
    """
    return _build(_read_yaml(path), cls, overrides, source=str(path))


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
    arguments = [f"--{key}={_to_yaml_value(value)}" for key, value in (overrides or {}).items()]
    if not isinstance(source, cls):
        return read_config(Path(cast("str", source)), cls, arguments)
    if not arguments:
        return source
    values = dataclasses.asdict(cast("Any", source))
    return _build(values, cls, arguments, source=cls.__name__)


def to_yaml(config: Any) -> bytes:
    """Format a configuration as YAML, with all keys.

    Args:
        config: a dataclass.

    Returns:
        The text in UTF-8; :func:`read_config` reads it back.
    """
    plain = dataclasses.asdict(config)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).encode()


def _build(
    values: dict[str, Any], cls: type[Config], overrides: Sequence[str], *, source: str
) -> Config:
    """Build a configuration from plain values and words of a command line."""
    parser = _parser(cls)
    try:
        parsed = parser.parse_object({"config": values})
        if overrides:
            arguments = [re.sub(r"^--(?=\w)", "--config.", word) for word in overrides]
            parsed = parser.parse_args(arguments, namespace=parsed)
        return parser.instantiate(parsed)["config"]
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{source}: {_reword(error)}") from error


@functools.cache
def _parser(cls: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, prog="")
    parser.add_class_arguments(cls, "config", fail_untyped=False)
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: a configuration must have at most {MAX_BYTES:,} bytes")
    try:
        values = yaml.load(content.decode(), _Loader)  # a safe loader
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8") from error
    except ValueError as error:  # an impossible date, or a number with thousands of digits
        raise ValueError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path}:{line} {problem}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path}: must be a mapping of keys to values, got {type(values).__name__}"
        )
    return values


def _error_at(event: Any, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, event.start_mark)


def _to_yaml_value(value: Any) -> str:
    """Return a value as one word of YAML; JSON is YAML."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return json.dumps(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)


def _reword(error: Exception) -> str:
    """Return jsonargparse's message in one line, with keys as the user writes them."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    return text
