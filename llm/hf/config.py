"""Conversion between ``config.json`` of Hugging Face and :class:`Architecture`.

Keys of ``transformers`` 4 and 5 are both read. A key that is absent has the default of the family's
class in ``transformers``; :mod:`llm.hf.config_keys` says what every key does.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from llm.models.architecture import Activation, Architecture

from .config_keys import COMPOSITES, FAMILIES, HfConfig, check_refused
from .config_values import read_optional, read_value
from .rope_config import read_rope, write_scaling

CLASSES = {family: each.class_name for family, each in FAMILIES.items()}
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
ACTIVATION_ALIASES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
"""Names of ``transformers`` for the same functions."""
LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}
GEMMA_FAMILIES = ("gemma", "gemma2", "gemma3_text")
POST_NORM_FAMILIES = ("gemma2", "gemma3_text")
DIVIDED_FAMILIES = ("llama", "gemma2", "gemma3_text")
"""Families whose class refuses a ``hidden_size`` that is no multiple of the number of heads."""


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
    config, family = text_config(config)
    check_refused(config, family)
    values = {
        key: _field(config, family, key)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    heads = _field(config, family, "num_attention_heads")
    if family in DIVIDED_FAMILIES and heads > 0 and values["hidden_size"] % heads:
        raise ValueError(
            "`hidden_size` must be a multiple of `num_attention_heads`, got "
            f"{values['hidden_size']} and {heads}"
        )
    gemma = family in GEMMA_FAMILIES
    bias = "attention_bias" in FAMILIES[family].used and _field(
        config, family, "attention_bias", bool
    )
    max_length = _field(config, family, "max_position_embeddings")
    return Architecture(
        model_type=family,
        **values,
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(config, family, heads),
        head_dim=_head_dim(config, family),
        max_position_embeddings=max_length,
        rms_norm_eps=_field(config, family, "rms_norm_eps", float),
        norm_plus_one=gemma,
        hidden_act=_activation(config, family),
        scaled_embeddings=gemma,
        tie_word_embeddings=_field(config, family, "tie_word_embeddings", bool),
        qkv_bias=family == "qwen2" or bias,
        o_proj_bias=bias,
        mlp_bias=family == "llama" and _field(config, family, "mlp_bias", bool),
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=family in POST_NORM_FAMILIES,
        bos_token_id=_token(config, family, "bos_token_id"),
        eos_token_id=_end_tokens(config, family),
        pad_token_id=_pad_token(config, family, values["vocab_size"]),
        **_caps(config, family),
        **read_rope(config, family, max_length),
        **_windows(config, family, values["num_hidden_layers"]),
    )


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
        key, family = COMPOSITES[family]
        section = config.get(key)
        if not isinstance(section, Mapping):
            raise ValueError(f"`{key}` must be an object, got {reprlib.repr(section)}")
        if section.get("model_type", family) != family:
            raise ValueError(f"`{key}.model_type` must be {family}, got {section['model_type']!r}")
        check_refused({**config, key: None}, family)
        tied = "tie_word_embeddings"
        if tied in config and config[tied] != section.get(tied, FAMILIES[family].used[tied]):
            raise ValueError(f"`{tied}` is {config[tied]}, but `{key}.{tied}` is another value")
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {**section, **{name: config[name] for name in tokens if name in config}}, family
    if family == "mistral" and "layer_types" in config:
        family = "ministral"  # as transformers' AutoConfig does
    if not isinstance(family, str) or family not in CLASSES:
        code = ": code in the folder is never run" if config.get("auto_map") else ""
        inner = ": models with images or sound are not" if "text_config" in config else ""
        raise ValueError(
            f"`model_type` must be one of {', '.join((*CLASSES, *COMPOSITES))}, got "
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
    if architecture.model_type not in CLASSES:
        names = ", ".join(CLASSES)
        raise ValueError(f"`model_type` must be one of {names}, got {architecture.model_type!r}")
    a = _explicit(architecture)
    activation = "hidden_activation" if a.model_type in POST_NORM_FAMILIES else "hidden_act"
    end = list(a.eos_token_id) if isinstance(a.eos_token_id, tuple) else a.eos_token_id
    config: dict[str, Any] = {
        "architectures": [CLASSES[a.model_type]],
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
        activation: _exact_gelu(a),
        "tie_word_embeddings": a.tie_word_embeddings,
        "rope_theta": a.rope_theta,
        "rope_scaling": None if a.rope_scaling is None else write_scaling(a.rope_scaling),
        "bos_token_id": a.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": a.pad_token_id,
    }
    config |= _family_keys(a)
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


def _field(config: HfConfig, family: str, key: str, kind: type[int] | type[float] = int) -> Any:
    """Read a key that must not be null; absent, it has the default of the family."""
    if key in config and config[key] is None:
        raise ValueError(f"`{key}` must be of type {kind.__name__}, got None")
    return read_value(config, key, kind, FAMILIES[family].used[key])


def _key_value_heads(config: HfConfig, family: str, heads: int) -> int:
    key = "num_key_value_heads"
    default = FAMILIES[family].used[key]
    if family in GEMMA_FAMILIES:
        return _field(config, family, key)
    read = heads if default is None or (key in config and config[key] is None) else default
    return _positive(key, read_value(config, key, int, read))


def _head_dim(config: HfConfig, family: str) -> int:
    default = FAMILIES[family].used["head_dim"]
    if default is not None:
        return _positive("head_dim", _field(config, family, "head_dim"))
    value = read_optional(config, "head_dim", int)
    return 0 if value is None else _positive("head_dim", value)


def _positive(key: str, value: int) -> int:
    """Return a size; 0 would stand for a default in :class:`Architecture`."""
    if value < 1:
        raise ValueError(f"`{key}` must be positive, got {value}")
    return value


def _activation(config: HfConfig, family: str) -> Activation:
    key = "hidden_activation" if family in POST_NORM_FAMILIES else "hidden_act"
    given = config.get(key, FAMILIES[family].used[key])
    name = ACTIVATION_ALIASES.get(given, given) if isinstance(given, str) else given
    if family == "gemma" and name == "gelu" and given == "gelu":
        name = "gelu_pytorch_tanh"  # the first Gemma configurations call it gelu
    if not isinstance(name, str) or name not in ACTIVATIONS:
        names = ", ".join((*ACTIVATIONS, *ACTIVATION_ALIASES))
        raise ValueError(f"`{key}` must be one of {names}, got {reprlib.repr(given)}")
    return cast(Activation, name)


def _exact_gelu(a: Architecture) -> str:
    """Return the name of the activation in a configuration; Gemma takes ``gelu`` for another."""
    is_exact = a.model_type == "gemma" and a.hidden_act == "gelu"
    return "gelu_python" if is_exact else a.hidden_act


def _token(config: HfConfig, family: str, key: str) -> int | None:
    return read_optional(config, key, int, FAMILIES[family].used[key])


def _pad_token(config: HfConfig, family: str, vocab_size: int) -> int | None:
    token = _token(config, family, "pad_token_id")
    if token is not None and token >= vocab_size:
        raise ValueError(f"`pad_token_id` must be below `vocab_size` {vocab_size}, got {token}")
    return None if token is not None and token < 0 else token


def _end_tokens(config: HfConfig, family: str) -> int | tuple[int, ...] | None:
    key = "eos_token_id"
    value = config.get(key)
    if isinstance(value, list):
        return tuple(read_value({key: token}, key, int) for token in value) or None
    return _token(config, family, key)


def _caps(config: HfConfig, family: str) -> dict[str, Any]:
    if family not in POST_NORM_FAMILIES:
        return {}
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    used = FAMILIES[family].used
    caps = {key: read_optional(config, key, float, used.get(key)) for key in keys if key in used}
    return caps | {"query_pre_attn_scalar": _field(config, family, "query_pre_attn_scalar")}


def _windows(config: HfConfig, family: str, num_hidden_layers: int) -> dict[str, Any]:
    used = FAMILIES[family].used
    if "sliding_window" not in used:
        return {}
    if family in POST_NORM_FAMILIES:  # their classes build the mask of a window in any case
        _field(config, family, "sliding_window")
    window = read_optional(config, "sliding_window", int, used["sliding_window"])
    missing = "`sliding_window` is null"
    if family.startswith("qwen") and not _field(config, family, "use_sliding_window", bool):
        window, missing = None, "`use_sliding_window` is false or absent"
    local = _local_layers(config, family, num_hidden_layers, window)
    if any(local) and window is None:
        raise ValueError(
            f"`layer_types` has sliding_attention, but {missing}: change one of the two keys"
        )
    return {"sliding_window": window, "local_layers": local} if any(local) else {}


def _local_layers(
    config: HfConfig, family: str, num_hidden_layers: int, window: int | None
) -> tuple[bool, ...]:
    layer_types = config.get("layer_types")
    if layer_types is not None:
        return _listed_layers(layer_types, num_hidden_layers)
    if family in ("mistral", "ministral"):
        return (window is not None,) * num_hidden_layers
    if family.startswith("qwen"):
        first = _field(config, family, "max_window_layers")
        return tuple(window is not None and i >= first for i in range(num_hidden_layers))
    pattern = 2
    if family == "gemma3_text":
        pattern = _positive(
            "sliding_window_pattern", _field(config, family, "sliding_window_pattern")
        )
    return tuple((i + 1) % pattern != 0 for i in range(num_hidden_layers))


def _listed_layers(layer_types: Any, num_hidden_layers: int) -> tuple[bool, ...]:
    if not isinstance(layer_types, list):
        raise ValueError(f"`layer_types` must be a list, got {reprlib.repr(layer_types)}")
    for layer_type in layer_types:
        if not isinstance(layer_type, str) or layer_type not in LAYER_TYPES:
            raise ValueError(
                "`layer_types` must be full_attention or sliding_attention, got "
                f"{reprlib.repr(layer_type)}"
            )
    if len(layer_types) != num_hidden_layers:
        raise ValueError(
            f"`layer_types` must have one entry for each of {num_hidden_layers} layers, got "
            f"{len(layer_types)}"
        )
    return tuple(LAYER_TYPES[layer_type] for layer_type in layer_types)


def _explicit(a: Architecture) -> Architecture:
    """Return an equal architecture whose values are given where a family has another default."""
    if a.model_type in POST_NORM_FAMILIES and a.query_pre_attn_scalar is None:
        a = replace(a, query_pre_attn_scalar=a.head_dim)
    if a.model_type == "gemma3_text" and a.local_layers and a.rope_local_base_freq is None:
        a = a if a.rope_scaling is not None else replace(a, rope_local_base_freq=a.rope_theta)
    return a


def _family_keys(a: Architecture) -> dict[str, Any]:
    """Return the keys that only some families have."""
    keys: dict[str, Any] = {}
    used = FAMILIES[a.model_type].used
    if "attention_bias" in used:
        keys["attention_bias"] = a.o_proj_bias
    if a.model_type == "llama":
        keys["mlp_bias"] = a.mlp_bias
    if a.model_type.startswith("qwen"):
        keys["use_sliding_window"] = bool(a.local_layers)
    if a.model_type == "mistral" or a.local_layers:
        keys["sliding_window"] = a.sliding_window
    if a.model_type == "ministral" and not a.local_layers:
        keys["sliding_window"] = used["sliding_window"]  # its class wants a number in any case
    if "layer_types" in used and a.model_type != "mistral":
        flags = a.local_layers or (False,) * a.num_hidden_layers
        types = {False: "full_attention", True: "sliding_attention"}
        if a.local_layers or a.model_type not in ("qwen2", "qwen3"):
            keys["layer_types"] = [types[bool(local)] for local in flags]
    if a.model_type in POST_NORM_FAMILIES:
        keys["query_pre_attn_scalar"] = a.query_pre_attn_scalar
        keys["attn_logit_softcapping"] = a.attn_logit_softcapping
        keys["final_logit_softcapping"] = a.final_logit_softcapping
    if a.rope_local_base_freq is not None:
        keys["rope_local_base_freq"] = a.rope_local_base_freq
    return keys
