"""Conversion between ``config.json`` of Hugging Face and :class:`Architecture`.

Keys of ``transformers`` 4 and 5 are both read.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, cast, get_args

from llm.models.architecture import Activation, Architecture, RopeScaling

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
GEMMA_FAMILIES = ("gemma", "gemma2", "gemma3_text")
GEMMA3_LOCAL_ROPE_THETA, GEMMA3_GLOBAL_ROPE_THETA = 10000.0, 1e6
"""Defaults of Gemma 3, whose configurations may leave them out."""
MAX_SIZES = {"num_hidden_layers": 10_000, "num_attention_heads": 10_000}
"""Sizes above these would exhaust memory before the model could be refused."""
HfConfig = Mapping[str, Any]
"""The content of a ``config.json``."""


def from_hf_config(config: HfConfig) -> Architecture:
    """Convert a Hugging Face configuration to an architecture.

    Args:
        config: content of ``config.json``.

    Returns:
        The architecture.

    Raises:
        ValueError: if the model type is unknown, a key is missing or of the wrong type, or a
            feature that changes the outputs is not implemented.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> from_hf_config({"model_type": "llama", "num_attention_heads": 2, **sizes}).hidden_size
        4
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise ValueError(
            f"`model_type` must be one of {', '.join(CLASSES)}, got {reprlib.repr(family)}: other "
            "architectures are not implemented"
        )
    _check_unsupported(config)
    num_attention_heads = _read(config, "num_attention_heads", int)
    gemma = family in GEMMA_FAMILIES
    bias = family not in ("mistral", "qwen2") and _read(config, "attention_bias", bool, False)
    return Architecture(
        model_type=family,
        vocab_size=_read(config, "vocab_size", int),
        hidden_size=_read(config, "hidden_size", int),
        intermediate_size=_read(config, "intermediate_size", int),
        num_hidden_layers=_read(config, "num_hidden_layers", int),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=_read(config, "num_key_value_heads", int, num_attention_heads),
        head_dim=_read(config, "head_dim", int, {"qwen3": 128}.get(family, 256 if gemma else 0)),
        max_position_embeddings=_read(config, "max_position_embeddings", int, 2048),
        rms_norm_eps=_read(config, "rms_norm_eps", float, 1e-6),
        norm_plus_one=gemma,
        hidden_act=_activation(config, family),
        scaled_embeddings=gemma,
        tie_word_embeddings=_read(config, "tie_word_embeddings", bool, gemma),
        qkv_bias=family == "qwen2" or bias,
        o_proj_bias=bias,
        mlp_bias=family == "llama" and _read(config, "mlp_bias", bool, False),
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=family in ("gemma2", "gemma3_text"),
        bos_token_id=_token(config, "bos_token_id"),
        eos_token_id=_end_tokens(config),
        pad_token_id=_token(config, "pad_token_id"),
        **_caps(config, family),
        **_rope(config, family),
        **_windows(config, family),
    )


def to_hf_config(architecture: Architecture) -> dict[str, Any]:
    """Convert an architecture to a configuration that ``transformers`` 4 and 5 both read.

    Args:
        architecture: an architecture whose ``model_type`` Hugging Face knows.

    Returns:
        Content of ``config.json``; :func:`from_hf_config` converts it to the same architecture.

    Raises:
        ValueError: if the model type is unknown, or has no key for an option of the architecture.
    """
    a = architecture
    if a.model_type not in CLASSES:
        raise ValueError(f"`model_type` must be one of {', '.join(CLASSES)}, got {a.model_type!r}")
    activation = "hidden_activation" if a.model_type in ("gemma2", "gemma3_text") else "hidden_act"
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
        activation: a.hidden_act,
        "tie_word_embeddings": a.tie_word_embeddings,
        "rope_theta": a.rope_theta,
        "rope_scaling": None if a.rope_scaling is None else _write_scaling(a.rope_scaling),
        "bos_token_id": a.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": a.pad_token_id,
    }
    config |= _family_keys(a)
    if from_hf_config(config) != a:
        raise ValueError(
            f"`model_type` {a.model_type!r} of Hugging Face cannot describe this architecture: {a}"
        )
    return config


def _read(config: HfConfig, key: str, kind: type[int] | type[float], default: Any = None) -> Any:
    value = config.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"`{key}` is missing from the model's configuration")
        return default
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"`{key}` must be of type {kind.__name__}, got {reprlib.repr(value)}")
    # The negation also refuses NaN.
    if not abs(value) < (1e300 if kind is float else MAX_SIZES.get(key, 2**31)):
        raise ValueError(f"`{key}` is too large, got {reprlib.repr(value)}")
    return kind(value)


def _check_unsupported(config: HfConfig) -> None:
    for key, reason in {
        "quantization_config": "quantized weights are not supported",
        "use_bidirectional_attention": "only causal attention is supported",
    }.items():
        if config.get(key):
            got = reprlib.repr(config[key])
            raise ValueError(f"`{key}` must be absent, got {got}: {reason}")


def _activation(config: HfConfig, family: str) -> Activation:
    default = "gelu_pytorch_tanh" if family in GEMMA_FAMILIES else "silu"
    name = config.get("hidden_activation") or config.get("hidden_act") or default
    if family == "gemma" and name == "gelu":
        name = "gelu_pytorch_tanh"  # the first Gemma configurations call it gelu
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_act` must be one of {', '.join(ACTIVATIONS)}, got {reprlib.repr(name)}"
        )
    return cast(Activation, name)


def _optional(
    config: HfConfig, key: str, kind: type[int] | type[float], default: Any = None
) -> Any:
    """Read a value that may be null."""
    return None if config.get(key, default) is None else _read(config, key, kind, default)


def _token(config: HfConfig, key: str) -> int | None:
    return _optional(config, key, int)


def _end_tokens(config: HfConfig) -> int | tuple[int, ...] | None:
    key = "eos_token_id"
    value = config.get(key)
    if isinstance(value, list):
        return tuple(_read({key: token}, key, int) for token in value)
    return _token(config, key)


def _caps(config: HfConfig, family: str) -> dict[str, Any]:
    if family not in ("gemma2", "gemma3_text"):
        return {}
    gemma2 = family == "gemma2"
    return {
        "attn_logit_softcapping": _optional(
            config, "attn_logit_softcapping", float, 50.0 if gemma2 else None
        ),
        "final_logit_softcapping": _optional(
            config, "final_logit_softcapping", float, 30.0 if gemma2 else None
        ),
        "query_pre_attn_scalar": _read(config, "query_pre_attn_scalar", int, 256),
    }


def _rope(config: HfConfig, family: str) -> dict[str, Any]:
    parameters = _section(config, "rope_parameters")
    gemma3 = family == "gemma3_text"
    full = _section(parameters, "full_attention") if gemma3 else parameters
    default = GEMMA3_GLOBAL_ROPE_THETA if gemma3 else 10000.0
    theta = _read({**config, **full}, "rope_theta", float, default)
    scaling = full if "rope_type" in full else _section(config, "rope_scaling")
    rope = {"rope_theta": theta, "rope_scaling": _read_scaling(scaling)}
    if gemma3:
        local = _section(parameters, "sliding_attention")
        if local.get("rope_type", "default") != "default":
            raise ValueError(
                f"`rope_type` of sliding_attention must be default, got {local['rope_type']!r}"
            )
        older = _read(config, "rope_local_base_freq", float, GEMMA3_LOCAL_ROPE_THETA)
        rope["rope_local_base_freq"] = _read(local, "rope_theta", float, older)
    return rope


def _section(config: HfConfig, key: str) -> HfConfig:
    section = config.get(key)
    if not isinstance(section, Mapping | None):
        raise ValueError(f"`{key}` must be an object, got {reprlib.repr(section)}")
    return section or {}


def _read_scaling(scaling: HfConfig) -> RopeScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(rope_type="linear", factor=_read(scaling, "factor", float))
    if kind != "llama3":
        raise ValueError(
            f"`rope_scaling` must be default, linear or llama3, got {reprlib.repr(kind)}"
        )
    return RopeScaling(
        rope_type="llama3",
        factor=_read(scaling, "factor", float),
        low_freq_factor=_read(scaling, "low_freq_factor", float),
        high_freq_factor=_read(scaling, "high_freq_factor", float),
        original_max_position_embeddings=_read(scaling, "original_max_position_embeddings", int),
    )


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.rope_type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def _windows(config: HfConfig, family: str) -> dict[str, Any]:
    window = _optional(config, "sliding_window", int)
    num_hidden_layers = _read(config, "num_hidden_layers", int)
    if family in ("llama", "gemma") or (family == "mistral" and not window):
        return {}
    if family.startswith("qwen") and not config.get("use_sliding_window"):
        return {}
    return {
        "sliding_window": window or 4096,
        "local_layers": _local_layers(config, family, num_hidden_layers),
    }


def _local_layers(config: HfConfig, family: str, num_hidden_layers: int) -> tuple[bool, ...]:
    layer_types = config.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list):
            raise ValueError(f"`layer_types` must be a list, got {reprlib.repr(layer_types)}")
        for layer_type in layer_types:
            if not isinstance(layer_type, str) or layer_type not in LAYER_TYPES:
                raise ValueError(
                    "`layer_types` must be full_attention or sliding_attention, got "
                    f"{reprlib.repr(layer_type)}"
                )
        return tuple(LAYER_TYPES[layer_type] for layer_type in layer_types)
    if family == "mistral":
        return (True,) * num_hidden_layers
    if family.startswith("qwen"):
        first = _read(config, "max_window_layers", int, 28)
        return tuple(i >= first for i in range(num_hidden_layers))
    pattern = 2 if family == "gemma2" else _read(config, "sliding_window_pattern", int, 6)
    return tuple((i + 1) % pattern != 0 for i in range(num_hidden_layers))


def _family_keys(a: Architecture) -> dict[str, Any]:
    """Return the keys that only some families have."""
    keys: dict[str, Any] = {}
    if a.model_type in ("llama", "qwen3", *GEMMA_FAMILIES):
        keys["attention_bias"] = a.o_proj_bias
    if a.model_type == "llama":
        keys["mlp_bias"] = a.mlp_bias
    if a.model_type.startswith("qwen"):
        keys["use_sliding_window"] = bool(a.local_layers)
    if a.model_type == "mistral" or a.local_layers:
        keys["sliding_window"] = a.sliding_window
    if a.model_type in ("gemma2", "gemma3_text") or (a.local_layers and a.model_type != "mistral"):
        types = {local: layer_type for layer_type, local in LAYER_TYPES.items()}
        flags = a.local_layers or (False,) * a.num_hidden_layers
        keys["layer_types"] = [types[local] for local in flags]
    if a.model_type in ("gemma2", "gemma3_text"):
        keys["query_pre_attn_scalar"] = a.query_pre_attn_scalar
        keys["attn_logit_softcapping"] = a.attn_logit_softcapping
        keys["final_logit_softcapping"] = a.final_logit_softcapping
    if a.rope_local_base_freq is not None:
        keys["rope_local_base_freq"] = a.rope_local_base_freq
    return keys
