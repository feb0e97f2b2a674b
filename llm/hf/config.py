"""Conversion between ``config.json`` of Hugging Face and :class:`Architecture`.

Keys of ``transformers`` 4 and 5 are both read. A key that is absent has the default of the family's
class in ``transformers``; :mod:`llm.hf.config_keys` says what every key does.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, cast, get_args

from llm.models.architecture import Activation, Architecture

from .config_keys import check_refused
from .config_values import ConfigReader, HfConfig, check_positive, read_optional, read_value
from .families import COMPOSITES, FAMILIES
from .families.record import Family
from .rope_config import read_rope, write_rope

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
ACTIVATION_ALIASES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
"""Names of ``transformers`` for the same functions."""
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


def from_hf_config(config: HfConfig) -> Architecture:
    """Convert a Hugging Face configuration to an architecture.

    Args:
        config: content of ``config.json``. The text model of a Gemma 3 with images is read.

    Returns:
        The architecture.

    Raises:
        ValueError: if the model type is unknown, a key has a wrong type, two keys contradict each
            other, or a feature that changes the outputs is not implemented.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> from_hf_config({"model_type": "llama", "num_attention_heads": 2, **sizes}).hidden_size
        4
    """
    config, name = text_config(config)
    family = FAMILIES[name]
    check_refused(config, family)
    keys = ConfigReader(config, family.keys)
    sizes = {key: keys.value(key) for key in SIZES}
    heads = keys.value("num_attention_heads")
    if family.divided_heads and heads > 0 and sizes["hidden_size"] % heads:
        raise ValueError(
            "`hidden_size` must be a multiple of `num_attention_heads`, got "
            f"{sizes['hidden_size']} and {heads}"
        )
    fields = {
        **sizes,
        "num_attention_heads": heads,
        "num_key_value_heads": _key_value_heads(keys, family, heads),
        "head_dim": _head_dim(keys),
        "max_position_embeddings": keys.value("max_position_embeddings"),
        "rms_norm_eps": keys.value("rms_norm_eps", float),
        "hidden_act": _activation(keys, family),
        "tie_word_embeddings": keys.value("tie_word_embeddings", bool),
        "bos_token_id": keys.optional("bos_token_id"),
        "eos_token_id": _end_tokens(keys),
        "pad_token_id": _pad_token(keys, sizes["vocab_size"]),
    }
    specific = {**family.fixed, **family.read(keys), **read_rope(keys, family)}
    return Architecture(model_type=name, **{**fields, **specific})


def text_config(config: HfConfig) -> tuple[HfConfig, str]:
    """Return the configuration of the text model, and its family.

    Args:
        config: content of ``config.json``.

    Returns:
        The configuration itself, or its section for the text model; and the model type.

    Raises:
        ValueError: if the model type is unknown, or the sections contradict each other.

    Examples:
        >>> text_config({"model_type": "mistral", "layer_types": None})[1]
        'ministral'
    """
    family = config.get("model_type")
    if isinstance(family, str) and family in COMPOSITES:
        return _text_section(config, family)
    if family == "mistral" and "layer_types" in config:
        family = "ministral"  # as transformers' AutoConfig does
    if not isinstance(family, str) or family not in FAMILIES:
        code = ": code in the folder is never run" if config.get("auto_map") else ""
        inner = ": models with images or sound are not" if "text_config" in config else ""
        raise ValueError(
            f"`model_type` must be one of {', '.join((*FAMILIES, *COMPOSITES))}, got "
            f"{reprlib.repr(family)}: other architectures are not implemented{inner}{code}"
        )
    return config, family


def to_hf_config(architecture: Architecture) -> dict[str, Any]:
    """Convert an architecture to a configuration that ``transformers`` 4 and 5 both read.

    Args:
        architecture: an architecture whose ``model_type`` Hugging Face knows.

    Returns:
        Content of ``config.json``; :func:`from_hf_config` converts it to the same architecture.

    Raises:
        ValueError: if the model type is unknown, or has no key for an option of the architecture;
            the message names the fields.
    """
    if architecture.model_type not in FAMILIES:
        names = ", ".join(FAMILIES)
        raise ValueError(f"`model_type` must be one of {names}, got {architecture.model_type!r}")
    family = FAMILIES[architecture.model_type]
    a = family.explicit(architecture)
    end = list(a.eos_token_id) if isinstance(a.eos_token_id, tuple) else a.eos_token_id
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": a.model_type,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_key_value_heads,
        "head_dim": a.head_dim,
        "max_position_embeddings": a.max_position_embeddings,
        "rms_norm_eps": a.rms_norm_eps,
        _activation_key(family): _exact_activation(a, family),
        "tie_word_embeddings": a.tie_word_embeddings,
        **write_rope(a, family),
        "bos_token_id": a.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": a.pad_token_id,
        **family.write(a),
    }
    written = from_hf_config(config)
    lost = [name for name in vars(a) if getattr(written, name) != getattr(a, name)]
    if lost:
        name = lost[0]
        raise ValueError(
            f"`model_type` {a.model_type!r} of Hugging Face cannot describe this architecture, so "
            f"that it could not be exported: `{name}` would be {getattr(written, name)!r} instead "
            f"of {getattr(a, name)!r}"
            + (f" ({len(lost) - 1} more differ)" if len(lost) > 1 else "")
        )
    return config


def _text_section(config: HfConfig, name: str) -> tuple[HfConfig, str]:
    """Return the section of a multi-modal model's text model, and its family."""
    composite = COMPOSITES[name]
    key = composite.section
    section = config.get(key)
    if not isinstance(section, Mapping):
        raise ValueError(f"`{key}` must be an object, got {reprlib.repr(section)}")
    family = section.get("model_type", composite.families[0])
    if family not in composite.families:
        names = " or ".join(composite.families)
        raise ValueError(f"`{key}.model_type` must be {names}, got {reprlib.repr(family)}")
    check_refused({**config, key: None}, FAMILIES[family])
    # transformers reads these keys from the outer configuration.
    outer = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return {**section, **{name: config[name] for name in outer if name in config}}, family


def _key_value_heads(keys: ConfigReader, family: Family, heads: int) -> int:
    key = "num_key_value_heads"
    if key in family.not_null:
        return keys.value(key)
    is_null = key in keys.config and keys.config[key] is None
    default = heads if is_null or family.keys[key] is None else family.keys[key]
    return check_positive(key, read_value(keys.config, key, int, default))


def _head_dim(keys: ConfigReader) -> int:
    if keys.defaults["head_dim"] is not None:
        return keys.positive("head_dim")
    value = read_optional(keys.config, "head_dim", int)
    return 0 if value is None else check_positive("head_dim", value)


def _activation_key(family: Family) -> str:
    return "hidden_activation" if "hidden_activation" in family.keys else "hidden_act"


def _activation(keys: ConfigReader, family: Family) -> Activation:
    key = _activation_key(family)
    given = keys.config.get(key, family.keys[key])
    name = given
    if isinstance(given, str):
        name = family.activations.get(given, ACTIVATION_ALIASES.get(given, given))
    if not isinstance(name, str) or name not in ACTIVATIONS:
        names = ", ".join((*ACTIVATIONS, *ACTIVATION_ALIASES))
        raise ValueError(f"`{key}` must be one of {names}, got {reprlib.repr(given)}")
    return cast(Activation, name)


def _exact_activation(a: Architecture, family: Family) -> str:
    """Return a name of the activation that the family does not take for another one."""
    if a.hidden_act not in family.activations:
        return a.hidden_act
    return next(name for name, same in ACTIVATION_ALIASES.items() if same == a.hidden_act)


def _pad_token(keys: ConfigReader, vocab_size: int) -> int | None:
    token = keys.optional("pad_token_id")
    if token is not None and token >= vocab_size:
        raise ValueError(f"`pad_token_id` must be below `vocab_size` {vocab_size}, got {token}")
    return None if token is not None and token < 0 else token


def _end_tokens(keys: ConfigReader) -> int | tuple[int, ...] | None:
    key = "eos_token_id"
    value = keys.config.get(key)
    if isinstance(value, list):
        return tuple(read_value({key: token}, key, int) for token in value) or None
    return keys.optional(key)
