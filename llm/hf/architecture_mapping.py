"""Architectures from mappings: ``model.architecture`` of YAML files, and records of checkpoints."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from llm.models.architecture import Architecture, RopeScaling

from .config_keys import ROPE_KEYS

Record = TypeVar("Record", Architecture, RopeScaling)
MAX_LAYERS = 10_000
"""Larger numbers of layers would exhaust memory before the model could be refused."""


def architecture_from_mapping(values: Mapping[str, Any]) -> Architecture:
    """Build an architecture from plain values, and check the type of every one.

    Args:
        values: fields of :class:`llm.models.architecture.Architecture`; ``rope_scaling`` is a
            mapping of the fields of :class:`llm.models.architecture.RopeScaling`.

    Returns:
        The architecture.

    Raises:
        ValueError: if a field is unknown or missing, or a value has a wrong type or range, or no
            effect; the message names the field.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> scaling = {"rope_type": "linear", "factor": 4}
        >>> values = {"num_attention_heads": 2, "rope_scaling": scaling, **sizes}
        >>> architecture_from_mapping(values).rope_scaling.factor
        4.0
    """
    prepared = dict(values)
    scaling = prepared.get("rope_scaling")
    if isinstance(scaling, Mapping):
        try:
            prepared["rope_scaling"] = _build(RopeScaling, scaling)
        except ValueError as error:
            raise ValueError(str(error).replace("`", "`rope_scaling.", 1)) from error
    architecture = _build(Architecture, prepared)
    _check_effects(values, architecture)
    return architecture


def _check_effects(values: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise an error if a given value has no effect."""
    for name in ("sliding_window", "rope_local_base_freq"):
        if values.get(name) is not None and not architecture.local_layers:
            raise ValueError(
                f"`{name}` has no effect without `local_layers`: give one flag per layer, true for "
                "layers with local attention"
            )
    scaling = architecture.rope_scaling
    given = values.get("rope_scaling")
    if scaling is not None and isinstance(given, Mapping):
        keys = ROPE_KEYS[scaling.rope_type]
        for name, value in given.items():
            if value is not None and name not in ("rope_type", *keys, "llama_4_scaling_beta"):
                raise ValueError(
                    f"`rope_scaling.{name}` has no effect for the type {scaling.rope_type}, which "
                    f"reads {', '.join(f'`{key}`' for key in keys if hasattr(scaling, key))}"
                )


def _build(kind: type[Record], values: Mapping[str, Any]) -> Record:
    names = [field.name for field in fields(kind)]
    hints = get_type_hints(kind)
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f": did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"`{name}` is not a field of {kind.__name__}{hint}")
    for field in fields(kind):
        if field.name not in values and field.default is field.default_factory:
            raise ValueError(f"`{field.name}` must be given")
    checked: dict[str, Any] = {
        name: _check(name, value, hints[name]) for name, value in values.items()
    }
    return kind(**checked)


def _check(name: str, value: Any, hint: Any) -> Any:
    """Return a value in the type of its field, or raise an error that names the field."""
    options = _options(hint)
    if value is None:
        if type(None) in options:
            return None
        raise _wrong_type(name, value, options)
    kind: type = type(value)
    literals = [option for option in options if isinstance(option, str)]
    if isinstance(value, RopeScaling) or (literals and value in literals):
        return value
    if kind is int and float in options and int not in options:
        return float(value)
    if kind in options:
        if kind is int and not -(2**31) < value < (
            MAX_LAYERS if name == "num_hidden_layers" else 2**31
        ):
            raise ValueError(f"`{name}` is too large, got {value}")
        return value
    for item in (bool, int, float):
        is_list = Sequence[item] in options and isinstance(value, list | tuple)
        kinds = (int, float) if item is float else (item,)
        if is_list and all(type(each) in kinds for each in value):
            return tuple(map(item, value))
    raise _wrong_type(name, value, options)


def _wrong_type(name: str, value: Any, options: tuple[Any, ...]) -> ValueError:
    literals = [option for option in options if isinstance(option, str)]
    allowed = literals or [_type_name(option) for option in options]
    return ValueError(f"`{name}` must be {' or '.join(allowed)}, got {reprlib.repr(value)}")


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the values of a literal type."""
    arguments = get_args(hint)
    return arguments if arguments and getattr(hint, "__origin__", None) is not Sequence else (hint,)


def _type_name(option: Any) -> str:
    if option is type(None):
        return "null"
    if option is RopeScaling:
        return "a mapping"
    items = get_args(option)
    if items:
        return f"a list of {items[0].__name__}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(option, str(option))
