"""Configurations: YAML files and dotted overrides, read into frozen dataclasses.

Unknown keys, wrong types, keys given twice and tags are refused in one line that names file and
key. What is read is plain data: no tag of YAML makes an object.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

Config = TypeVar("Config")
LARGEST = 100_000
"""Bytes of a configuration file at most: it is read at some 50,000 bytes a second."""
REWORDED = (
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
"""How the library's messages are told."""


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases or repeated keys, in which 5e-7 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, if every key is there once."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _at(key_node, f"key {key!r} must be a word")
            if key in seen:
                raise _at(key_node, f"key `{key}` is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node that is not an alias: one line could stand for a billion."""
        if self.check_event(yaml.AliasEvent):
            raise _at(self.peek_event(), "aliases (*name) are not allowed")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_config(path: Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration, replace what the command line says, and check all of it.

    Args:
        path: a YAML file.
        cls: a frozen dataclass, whose fields may be dataclasses.
        overrides: ``--key.key value`` or ``--key.key=value``.

    Returns:
        The configuration.

    Raises:
        ValueError: a mistake in the file or in an override; it names the key.
        OSError: the file cannot be read.
    """
    values = _read_yaml(path)
    parser = _parser(cls)
    try:
        parsed = parser.parse_object({"config": values})
        if overrides:
            arguments = [_prefixed(argument) for argument in overrides]
            parsed = parser.parse_args(arguments, namespace=parsed)
        return parser.instantiate(parsed)["config"]
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {_told(error)}") from error


def to_yaml(config: Any) -> bytes:
    """A resolved configuration as YAML, every key with its value.

    Args:
        config: a dataclass.

    Returns:
        The text; :func:`read_config` reads it back.
    """
    plain = dataclasses.asdict(config)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).encode()


@functools.cache
def _parser(cls: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, prog="")
    parser.add_class_arguments(cls, "config", fail_untyped=False)
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if len(content) > LARGEST:
        raise ValueError(f"{path}: a configuration has at most {LARGEST:,} bytes")
    try:
        values = yaml.load(content.decode(), _Loader)  # a safe loader
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8") from error
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        raise ValueError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"{path}:{line} {problem}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be keys with values, got {type(values).__name__}")
    return values


def _at(place: Any, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


def _prefixed(argument: str) -> str:
    return re.sub(r"^--(?=\w)", "--config.", argument)


def _told(error: Exception) -> str:
    """The library's message in one line, with keys as the user writes them."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    for pattern, replacement in REWORDED:
        text = re.sub(pattern, replacement, text)
    return text
