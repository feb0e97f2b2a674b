"""Values of one set of rotary settings: a :class:`RopeScaling` from its keys, and back."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, cast

from llm.models.rope_scaling import RopeScaling, RopeType

from .config_keys import ROPE_KEYS
from .config_values import HfConfig, read_optional, read_value
from .families.record import Family

ORIGINAL = "original_max_position_embeddings"


def rope_type(settings: HfConfig, name: str, family: Family) -> str:
    """Return the rotary type of a set of settings.

    Args:
        settings: the settings, with ``rope_type`` or ``type``.
        name: name of the section, for messages.
        family: the model family; it may know fewer types, or other names.

    Returns:
        A key of :data:`llm.hf.config_keys.ROPE_KEYS`.

    Raises:
        ValueError: if the type is unknown, or the two keys differ.

    Examples:
        >>> from llm.hf.families import llama
        >>> rope_type({"type": "yarn"}, "rope_scaling", llama.FAMILY)
        'yarn'
    """
    names = [settings[key] for key in ("rope_type", "type") if settings.get(key) is not None]
    if len(names) == 2 and names[0] != names[1]:
        raise ValueError(
            f"`{name}.rope_type` is {reprlib.repr(names[0])}, but `{name}.type` is "
            f"{reprlib.repr(names[1])}: remove one of them"
        )
    kind = names[0] if names else "default"
    known = family.rope_types or {key: key for key in ROPE_KEYS}
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"`{name}.rope_type` must be one of {', '.join(known)}, got {reprlib.repr(kind)}"
        )
    return known[kind]


def read_scaling(
    settings: HfConfig, name: str, max_length: int, family: Family
) -> RopeScaling | None:
    """Read the scaling of the rotary frequencies.

    Args:
        settings: the settings.
        name: name of the section, for messages.
        max_length: ``max_position_embeddings``, which stands for an absent
            ``original_max_position_embeddings``.
        family: the model family.

    Returns:
        The scaling; None for the type ``default``.

    Raises:
        ValueError: if a setting is missing or of a wrong type.

    Examples:
        >>> from llm.hf.families import llama
        >>> read_scaling({"type": "linear", "factor": 2}, "rope_scaling", 64, llama.FAMILY).factor
        2.0
    """
    kind = rope_type(settings, name, family)
    if kind == "default":
        return None
    original = read_value(settings, ORIGINAL, int, max_length)
    if original < 1:
        raise ValueError(f"`{ORIGINAL}` must be positive, got {original}")
    values: dict[str, Any] = {"rope_type": kind}
    if kind in ("yarn", "llama3", "longrope"):
        values[ORIGINAL] = original
    ratio = max_length / original
    match cast(RopeType, kind):
        case "yarn":
            values |= _read_yarn(settings, ratio)
        case "longrope":
            # The factor of a shorter model has no effect: its angles are not scaled.
            values["factor"] = max(read_value(settings, "factor", float, ratio), 1.0)
            values["attention_factor"] = read_optional(settings, "attention_factor", float)
            values |= {key: _factors(settings, key) for key in ("short_factor", "long_factor")}
        case "llama3":
            frequencies = ("factor", "low_freq_factor", "high_freq_factor")
            values |= {key: read_value(settings, key, float) for key in frequencies}
        case _:
            values["factor"] = read_value(settings, "factor", float)
    values |= {key: read_value(settings, key, float) for key in family.rope_keys}
    return RopeScaling(**values)


def write_scaling(scaling: RopeScaling, max_length: int) -> dict[str, Any]:
    """Return the content of ``rope_scaling`` for an architecture.

    Args:
        scaling: the scaling of the rotary frequencies.
        max_length: ``max_position_embeddings`` of the model.

    Returns:
        The keys that ``transformers`` 4 and 5 read for this type.

    Examples:
        >>> write_scaling(RopeScaling(rope_type="linear", factor=2.0), 64)
        {'rope_type': 'linear', 'factor': 2.0}
    """
    keys = [key for key in ROPE_KEYS[scaling.rope_type] if hasattr(scaling, key)]
    values = {key: getattr(scaling, key) for key in (*keys, "llama_4_scaling_beta")}
    original = scaling.original_max_position_embeddings
    if scaling.rope_type == "longrope" and scaling.factor == max(max_length / original, 1.0):
        del values["factor"]  # Phi-3 of transformers 4 accepts no further key than the factors
    if values.get("truncate"):
        del values["truncate"]
    lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
    # Phi-3 of transformers 4 knows the older name of the key only.
    name = "type" if scaling.rope_type == "longrope" else "rope_type"
    return {name: scaling.rope_type} | {
        key: value for key, value in (values | lists).items() if value is not None
    }


def _read_yarn(settings: HfConfig, ratio: float) -> dict[str, Any]:
    if "factor" not in settings:
        raise ValueError("`factor` is missing from the rotary settings of type yarn")
    factor = read_value(settings, "factor", float, ratio)
    attention = read_optional(settings, "attention_factor", float)
    scale, all_dim = (read_optional(settings, key, float) for key in ("mscale", "mscale_all_dim"))
    if attention is None and scale and all_dim:
        attention = _mscale(factor, scale) / _mscale(factor, all_dim)
    # transformers reads 0 as absent.
    fast, slow = (read_optional(settings, key, float) for key in ("beta_fast", "beta_slow"))
    return {
        "factor": factor,
        "attention_factor": attention,
        "beta_fast": fast or None,
        "beta_slow": slow or None,
        "truncate": read_value(settings, "truncate", bool, True),
    }


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _factors(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """Return the divisors of the frequencies of ``longrope``, one for each plane."""
    values = settings.get(key)
    if not isinstance(values, list):
        raise ValueError(f"`{key}` must be a list of numbers, got {reprlib.repr(values)}")
    return tuple(read_value({key: value}, key, float) for value in values)
