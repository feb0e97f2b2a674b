"""Rotary settings of ``config.json``: every spelling of ``transformers`` 4 and 5.

Settings stand in ``rope_parameters``, ``rope_scaling`` or at the top level, with ``rope_type`` or
``type``. Gemma 3 has one set per layer type. Where ``transformers`` would drop a value that the
file gives, the file is refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from llm.models.architecture import RopeScaling

from .config_keys import FAMILIES, ROPE_KEYS, HfConfig
from .config_values import read_optional, read_value

LAYER_SETS = ("full_attention", "sliding_attention")


def read_rope(config: HfConfig, family: str, max_length: int) -> dict[str, Any]:
    """Read the rotary fields of an architecture.

    Args:
        config: content of ``config.json``, or of its text section.
        family: model type, a key of :data:`llm.hf.config_keys.FAMILIES`.
        max_length: ``max_position_embeddings``, which stands for an absent
            ``original_max_position_embeddings``.

    Returns:
        Values of ``rope_theta``, ``rope_scaling`` and, for Gemma 3, ``rope_local_base_freq``.

    Raises:
        ValueError: if a setting is missing, contradicts another one, or is not implemented.

    Examples:
        >>> settings = {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 500.0}}
        >>> read_rope(settings, "llama", 64)["rope_theta"]
        500.0
    """
    if family == "gemma3_text":
        return _read_gemma3(config, max_length)
    name, settings = _flat_settings(config)
    theta = read_value({**_top_theta(config, family), **settings}, "rope_theta", float)
    original = read_optional(config, "original_max_position_embeddings", int)
    if original is not None:  # transformers prefers the top level
        settings = {**settings, "original_max_position_embeddings": original}
    _check_dropped(config, settings, theta)
    return {"rope_theta": theta, "rope_scaling": _read_scaling(settings, name, max_length)}


def unused_rope_keys(config: HfConfig, family: str) -> list[str]:
    """Return the keys of rotary sections that have no effect, as ``section.key``.

    Args:
        config: content of ``config.json``, or of its text section.
        family: model type.

    Returns:
        The names, sorted.

    Examples:
        >>> settings = {"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True}}
        >>> unused_rope_keys(settings, "llama")
        ['rope_scaling.finetuned']
    """
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        section = config.get(name)
        if not isinstance(section, Mapping):
            continue
        nested = family == "gemma3_text" and name == "rope_parameters"
        sets = {f"{name}.{key}": section.get(key) for key in LAYER_SETS} if nested else {}
        for where, settings in (sets or {name: section}).items():
            if isinstance(settings, Mapping):
                known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
                known |= set(ROPE_KEYS.get(_rope_type(settings, where), ()))
                extra = (key for key, value in settings.items() if value is not None)
                found += [f"{where}.{key}" for key in extra if key not in known]
        found += [f"{name}.{key}" for key in section if nested and key not in LAYER_SETS]
    return sorted(found)


def write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Return the content of ``rope_scaling`` for an architecture.

    Args:
        scaling: the scaling of the rotary frequencies.

    Returns:
        The keys that ``transformers`` 4 and 5 read for this type.

    Examples:
        >>> write_scaling(RopeScaling(rope_type="linear", factor=2.0))
        {'rope_type': 'linear', 'factor': 2.0}
    """
    keys = (key for key in ROPE_KEYS[scaling.rope_type] if hasattr(scaling, key))
    values = {key: getattr(scaling, key) for key in keys}
    return {"rope_type": scaling.rope_type} | {
        key: value for key, value in values.items() if value is not None
    }


def _flat_settings(config: HfConfig) -> tuple[str, dict[str, Any]]:
    """Return the section that ``transformers`` uses, with its name."""
    for name in ("rope_scaling", "rope_parameters"):
        settings = _section(config, name)
        for key, value in settings.items():
            if isinstance(value, Mapping):
                raise ValueError(
                    f"`{name}.{key}` must not be an object: this model type has one set of rotary "
                    f"settings for all layers; write its keys into `{name}` itself"
                )
        if settings:
            return name, settings
    return "rope_parameters", {}


def _check_dropped(config: HfConfig, settings: Mapping[str, Any], theta: float) -> None:
    """Refuse values of ``rope_parameters`` that ``transformers`` drops for ``rope_scaling``."""
    if not _section(config, "rope_scaling"):
        return
    effective = {"rope_type": _rope_type(settings, "rope_scaling"), **settings, "rope_theta": theta}
    dropped = _section(config, "rope_parameters")
    for key, value in dropped.items():
        name = "rope_type" if key == "type" else key
        if value is not None and effective.get(name) != value:
            got = reprlib.repr(effective.get(name))
            raise ValueError(
                f"`rope_parameters.{key}` is {reprlib.repr(value)}, but `rope_scaling` replaces "
                f"`rope_parameters` and leaves {got}: move all rotary keys into one of the two"
            )


def _read_gemma3(config: HfConfig, max_length: int) -> dict[str, Any]:
    parameters = _section(config, "rope_parameters")
    for key, value in parameters.items():
        if key not in LAYER_SETS and value is not None:
            raise ValueError(
                f"`rope_parameters.{key}` must stand inside `full_attention` or "
                "`sliding_attention`: Gemma 3 has one set of rotary settings per layer type"
            )
    full, local = (_section(parameters, key) for key in LAYER_SETS)
    older = _section(config, "rope_scaling")
    if older and parameters and parameters.get("full_attention") is None:
        raise ValueError(
            "`rope_scaling` must be absent beside `rope_parameters` without `full_attention`: move "
            "its keys to `rope_parameters.full_attention`"
        )
    full = {**full, **older}
    name = "rope_scaling" if older else "rope_parameters.full_attention"
    defaults = FAMILIES["gemma3_text"].used
    theta = read_value({**_top_theta(config, "gemma3_text"), **full}, "rope_theta", float)
    kind = _rope_type(local, "rope_parameters.sliding_attention")
    if kind != "default":
        raise ValueError(f"`rope_type` of sliding_attention must be default, got {kind!r}")
    _check_partial(local)
    local_key = "rope_local_base_freq"
    base = read_value(config, local_key, float, defaults[local_key])
    return {
        "rope_theta": theta,
        "rope_scaling": _read_scaling(full, name, max_length),
        local_key: read_value(local, "rope_theta", float, base),
    }


def _top_theta(config: HfConfig, family: str) -> dict[str, Any]:
    theta = read_value(config, "rope_theta", float, FAMILIES[family].used["rope_theta"])
    return {"rope_theta": theta}


def _section(config: HfConfig, key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping | None):
        raise ValueError(f"`{key}` must be an object, got {reprlib.repr(section)}")
    return dict(section or {})


def _rope_type(settings: HfConfig, name: str) -> str:
    names = [settings[key] for key in ("rope_type", "type") if settings.get(key) is not None]
    if len(names) == 2 and names[0] != names[1]:
        raise ValueError(
            f"`{name}.rope_type` is {reprlib.repr(names[0])}, but `{name}.type` is "
            f"{reprlib.repr(names[1])}: remove one of them"
        )
    kind = names[0] if names else "default"
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise ValueError(
            f"`{name}.rope_type` must be one of {', '.join(ROPE_KEYS)}, got {reprlib.repr(kind)}"
        )
    return kind


def _check_partial(settings: HfConfig) -> None:
    if settings.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(
            "`partial_rotary_factor` must be absent or 1, got "
            f"{reprlib.repr(settings['partial_rotary_factor'])}: rotary angles apply to whole heads"
        )


def _read_scaling(settings: HfConfig, name: str, max_length: int) -> RopeScaling | None:
    _check_partial(settings)
    kind = _rope_type(settings, name)
    if kind == "default":
        return None
    original_key = "original_max_position_embeddings"
    original = read_value(settings, original_key, int, max_length)
    if original < 1:
        raise ValueError(f"`{original_key}` must be positive, got {original}")
    if kind == "yarn":
        return _read_yarn(settings, original, max_length)
    factor = read_value(settings, "factor", float)
    if kind == "llama3":
        return RopeScaling(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=read_value(settings, "low_freq_factor", float),
            high_freq_factor=read_value(settings, "high_freq_factor", float),
            original_max_position_embeddings=original,
        )
    return RopeScaling(rope_type="linear" if kind == "linear" else "dynamic", factor=factor)


def _read_yarn(settings: HfConfig, original: int, max_length: int) -> RopeScaling:
    if "factor" not in settings:
        raise ValueError("`factor` is missing from the rotary settings of type yarn")
    if settings.get("truncate") not in (None, True):
        raise ValueError(
            f"`truncate` must be absent or true, got {reprlib.repr(settings['truncate'])}"
        )
    factor = read_value(settings, "factor", float, max_length / original)
    attention = read_optional(settings, "attention_factor", float)
    scale, all_dim = (read_optional(settings, key, float) for key in ("mscale", "mscale_all_dim"))
    if attention is None and scale and all_dim:
        attention = _mscale(factor, scale) / _mscale(factor, all_dim)
    # transformers reads 0 as absent.
    fast, slow = (read_optional(settings, key, float) for key in ("beta_fast", "beta_slow"))
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention,
        beta_fast=fast or None,
        beta_slow=slow or None,
    )


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
