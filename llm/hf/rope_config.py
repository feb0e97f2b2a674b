"""Rotary settings of ``config.json``: every spelling of ``transformers`` 4 and 5.

Settings stand in ``rope_parameters``, ``rope_scaling`` or at the top level, with ``rope_type`` or
``type``. Some families have one set per layer type. Where ``transformers`` would drop a value that
the file gives, the file is refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from llm.models.architecture import Architecture

from .config_keys import ROPE_KEYS
from .config_values import ConfigReader, HfConfig, read_value
from .families.record import Family
from .rope_values import ORIGINAL, read_scaling, rope_type, write_scaling

LAYER_SETS = ("full_attention", "sliding_attention")
PARTIAL = "partial_rotary_factor"
LOCAL_BASE = "rope_local_base_freq"


def read_rope(keys: ConfigReader, family: Family) -> dict[str, Any]:
    """Read the rotary fields of an architecture.

    Args:
        keys: the configuration, or its text section.
        family: the model family.

    Returns:
        Values of ``rope_theta`` and ``rope_scaling``, and of ``rope_local_base_freq`` or
        ``partial_rotary_factor`` if the family has them.

    Raises:
        ValueError: if a setting is missing, contradicts another one, or is not implemented.

    Examples:
        >>> from llm.hf.families import llama
        >>> settings = {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 500.0}}
        >>> read_rope(ConfigReader(settings, llama.KEYS), llama.FAMILY)["rope_theta"]
        500.0
    """
    if family.rope_by_layer_type:
        return _read_by_layer_type(keys, family)
    config = keys.config
    name, settings = _flat_settings(config)
    if not settings and config.get("rope_parameters") is None:
        settings = dict(family.default_rope)
    theta = read_value({**_top_theta(keys), **settings}, "rope_theta", float)
    original = keys.optional(ORIGINAL)
    if original is not None:  # transformers prefers the top level
        settings = {**settings, ORIGINAL: original}
    _check_dropped(config, settings, theta, family)
    fields: dict[str, Any] = {"rope_theta": theta}
    if PARTIAL in keys:
        top = {PARTIAL: config[PARTIAL]} if PARTIAL in config else {}
        fields[PARTIAL] = read_value({**top, **settings}, PARTIAL, float, keys.defaults[PARTIAL])
    else:
        _check_partial(settings)
    max_length = keys.value("max_position_embeddings")
    return {**fields, "rope_scaling": read_scaling(settings, name, max_length, family)}


def write_rope(architecture: Architecture, family: Family) -> dict[str, Any]:
    """Return the rotary keys for an architecture, in a form that ``transformers`` 4 and 5 read.

    Args:
        architecture: the architecture.
        family: its model family.

    Returns:
        ``rope_theta``, ``rope_scaling`` and the further keys that the family needs.

    Examples:
        >>> from llm.hf.families import llama
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> write_rope(Architecture(**sizes, num_attention_heads=2), llama.FAMILY)
        {'rope_theta': 10000.0, 'rope_scaling': None}
    """
    a, scaling = architecture, architecture.rope_scaling
    section = None if scaling is None else write_scaling(scaling, a.max_position_embeddings)
    keys: dict[str, Any] = {"rope_theta": a.rope_theta, "rope_scaling": section}
    if family.keys.get(ORIGINAL) is not None and section is not None:
        keys[ORIGINAL] = section.pop(ORIGINAL)
    if PARTIAL in family.keys:
        keys[PARTIAL] = a.partial_rotary_factor
    if section is None and family.default_rope:
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": a.rope_theta}
    if family.rope_by_layer_type and a.local_layers:
        if LOCAL_BASE in family.keys:
            keys[LOCAL_BASE] = a.rope_local_base_freq
        else:
            full = {"rope_type": "default", "rope_theta": a.rope_theta, **(section or {})}
            local = {"rope_type": "default", "rope_theta": a.rope_local_base_freq}
            keys["rope_parameters"] = dict(zip(LAYER_SETS, (full, local), strict=True))
    return keys


def unused_rope_keys(config: HfConfig, family: Family) -> list[str]:
    """Return the keys of rotary sections that have no effect, as ``section.key``.

    Args:
        config: content of ``config.json``, or of its text section.
        family: the model family.

    Returns:
        The names, sorted.

    Examples:
        >>> from llm.hf.families import llama
        >>> settings = {"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True}}
        >>> unused_rope_keys(settings, llama.FAMILY)
        ['rope_scaling.finetuned']
    """
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        section = config.get(name)
        if not isinstance(section, Mapping):
            continue
        nested = family.rope_by_layer_type and name == "rope_parameters"
        sets = {f"{name}.{key}": section.get(key) for key in LAYER_SETS} if nested else {}
        for where, settings in (sets or {name: section}).items():
            if isinstance(settings, Mapping):
                known = {"rope_type", "type", "rope_theta", PARTIAL, *family.rope_keys}
                known |= set(ROPE_KEYS.get(rope_type(settings, where, family), ()))
                extra = (key for key, value in settings.items() if value is not None)
                found += [f"{where}.{key}" for key in extra if key not in known]
        found += [f"{name}.{key}" for key in section if nested and key not in LAYER_SETS]
    return sorted(found)


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


def _check_dropped(
    config: HfConfig, settings: Mapping[str, Any], theta: float, family: Family
) -> None:
    """Refuse values of ``rope_parameters`` that ``transformers`` drops for ``rope_scaling``."""
    if not _section(config, "rope_scaling"):
        return
    kind = rope_type(settings, "rope_scaling", family)
    effective = {"rope_type": kind, **settings, "rope_theta": theta}
    dropped = _section(config, "rope_parameters")
    for key, value in dropped.items():
        name = "rope_type" if key == "type" else key
        if value is not None and effective.get(name) != value:
            got = reprlib.repr(effective.get(name))
            raise ValueError(
                f"`rope_parameters.{key}` is {reprlib.repr(value)}, but `rope_scaling` replaces "
                f"`rope_parameters` and leaves {got}: move all rotary keys into one of the two"
            )


def _read_by_layer_type(keys: ConfigReader, family: Family) -> dict[str, Any]:
    config = keys.config
    parameters = _section(config, "rope_parameters")
    for key, value in parameters.items():
        if key not in LAYER_SETS and value is not None:
            raise ValueError(
                f"`rope_parameters.{key}` must stand inside `full_attention` or "
                f"`sliding_attention`: {family.model_type} has one set of rotary settings per "
                "layer type"
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
    theta = read_value({**_top_theta(keys), **full}, "rope_theta", float)
    kind = rope_type(local, "rope_parameters.sliding_attention", family)
    if kind != "default":
        raise ValueError(f"`rope_type` of sliding_attention must be default, got {kind!r}")
    if full.get("truncate") not in (None, True):
        raise ValueError(
            "`truncate` must be absent or true, got "
            f"{reprlib.repr(full['truncate'])}: transformers does not read it by layer type"
        )
    _check_partial(local)
    _check_partial(full)
    base = keys.defaults["rope_theta"]
    if LOCAL_BASE in keys:
        base = read_value(config, LOCAL_BASE, float, keys.defaults[LOCAL_BASE])
    max_length = keys.value("max_position_embeddings")
    return {
        "rope_theta": theta,
        "rope_scaling": read_scaling(full, name, max_length, family),
        LOCAL_BASE: read_value(local, "rope_theta", float, base),
    }


def _top_theta(keys: ConfigReader) -> dict[str, Any]:
    return {"rope_theta": read_value(keys.config, "rope_theta", float, keys.defaults["rope_theta"])}


def _section(config: HfConfig, key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping | None):
        raise ValueError(f"`{key}` must be an object, got {reprlib.repr(section)}")
    return dict(section or {})


def _check_partial(settings: HfConfig) -> None:
    if settings.get(PARTIAL) not in (None, 1):
        raise ValueError(
            f"`{PARTIAL}` must be absent or 1, got {reprlib.repr(settings[PARTIAL])}: rotary "
            "angles apply to whole heads"
        )
