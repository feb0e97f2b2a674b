"""YAML by the core schema of YAML 1.2, as plain data: no tags, aliases or repeated keys.

``yes``, ``on``, ``1:30``, ``1_000`` and ``2026-01-01`` are text, ``0o14`` and ``0x1F`` are whole
numbers. One rule is stricter: a number has no leading zeros, because YAML 1.1 reads 014 as 12.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from typing import Any

import yaml

from rpo_io.staging import local_file

MAX_BYTES = 100_000
"""Largest configuration file; the parser reads about 50,000 bytes per second."""
MAX_DIGITS = 400
"""Largest number of digits of a whole number; the largest floating-point number has 309."""
_TAG = "tag:yaml.org,2002:"
_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 without tags, aliases or repeated keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # those of YAML 1.1 are left out

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

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Do nothing: YAML 1.2 has no merge keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, but no alias: one line of aliases can expand to a billion nodes."""
        if self.check_event(yaml.AliasEvent):
            raise _error_at(self.peek_event(), "aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        """Construct a decimal, octal or hexadecimal number."""
        text = str(self.construct_scalar(node))
        if len(text) > MAX_DIGITS:
            raise _error_at(node, f"a number may have at most {MAX_DIGITS} digits")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_real_number(self, node: yaml.ScalarNode) -> float:
        """Construct a floating-point number."""
        return float(re.sub(r"\.(?=[in])", "", str(self.construct_scalar(node)).lower()))


class _Dumper(yaml.SafeDumper):
    """YAML that versions 1.1 and 1.2 read alike."""


for _name, _pattern, _first in _SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TAG + "int", _Loader.construct_whole_number)
_Loader.add_constructor(_TAG + "float", _Loader.construct_real_number)
for _name in ("binary", "timestamp", "omap", "pairs", "set"):
    _Loader.add_constructor(_TAG + _name, _Loader.construct_undefined)


def read_yaml(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Args:
        source: the file, also one in a bucket or on the hub.

    Returns:
        Plain values by key.

    Raises:
        ValueError: if the file is too large, not UTF-8, not YAML or no mapping.
        OSError: if the file cannot be read.
    """
    path, shown = local_file(str(source)), str(source)
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f": write {inside}" if inside.is_file() else ""
        raise ValueError(f"{shown}: is a folder, but must be a YAML file{hint}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{shown}: a configuration must have at most {MAX_BYTES:,} bytes")
    try:
        values = parse_yaml(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown}: must be text in UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{shown}:{error}") from error
    if not isinstance(values, dict):
        kinds = {type(None): "an empty file", list: "a list"}
        got = kinds.get(type(values), f"only {str(values)[:50]!r}")
        raise ValueError(f"{shown}: must be a mapping of keys to values, got {got}")
    return values


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Args:
        text: the document.

    Returns:
        Plain values.

    Raises:
        ValueError: if the text is not YAML, or uses tags, aliases or a key twice; the message
            begins with the line where it is known.

    Examples:
        >>> parse_yaml("{a: yes, b: 0o14, c: 1e-7}")
        {'a': 'yes', 'b': 12, 'c': 1e-07}
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except RecursionError as error:
        raise ValueError(" nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"{line} {' '.join(problem.split())}") from error
    except (ValueError, KeyError) as error:  # a tag of YAML's own on a value of another kind
        raise ValueError(f" a tag does not fit its value: {error}") from error


def format_yaml(values: Any) -> bytes:
    """Format plain values as YAML, with keys in their order.

    Args:
        values: mappings, lists, texts, numbers, booleans and None.

    Returns:
        The text in UTF-8; :func:`parse_yaml` gives the values back.
    """
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    ).encode()


def _error_at(event: Any, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
