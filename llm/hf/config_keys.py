"""The table of ``config.json`` keys: what each key of a model family does here.

A key is used, has no effect on the numbers, or is refused unless it has its neutral value. Keys
outside the table have no effect in ``transformers`` either; :func:`unused_keys` lists them. The
page ``docs/reference/model_configs.md`` is generated from this module.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

HfConfig = Mapping[str, Any]
"""The content of a ``config.json``."""


class Family(NamedTuple):
    """A model family of Hugging Face that :class:`llm.models.architecture.Architecture` describes.

    Attributes:
        class_name: class of ``transformers`` that loads an exported model.
        used: keys that are read, with the value that stands for an absent key in ``transformers``.
        refused: keys that only this family refuses, see :data:`REFUSED`.
    """

    class_name: str
    used: Mapping[str, Any]
    refused: Mapping[str, tuple[tuple[Any, ...], str]] = {}


_SIZES: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_ROPE: dict[str, Any] = {
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": None,
}
_LLAMA = {
    **_SIZES,
    "hidden_act": "silu",
    **_ROPE,
    "attention_bias": False,
    "mlp_bias": False,
}
_MISTRAL = {
    **_SIZES,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    **_ROPE,
    "sliding_window": 4096,
    "layer_types": None,
}
_QWEN_2 = {
    **_SIZES,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    **_ROPE,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_GEMMA = {
    **_SIZES,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    **_ROPE,
    "attention_bias": False,
}
_GEMMA_2 = {
    **{key: value for key, value in _GEMMA.items() if key != "hidden_act"},
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_NOT_IN_GEMMA_3 = ("attn_logit_softcapping", "original_max_position_embeddings")
_GEMMA_3 = {
    **{key: value for key, value in _GEMMA_2.items() if key not in _NOT_IN_GEMMA_3},
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
}
_UNCAPPED = "transformers reads the key and does not apply it, so its meaning is open"

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA),
    "mistral": Family("MistralForCausalLM", _MISTRAL),
    "ministral": Family("MinistralForCausalLM", _MISTRAL),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN_2),
    "qwen3": Family("Qwen3ForCausalLM", {**_QWEN_2, "head_dim": 128, "attention_bias": False}),
    "gemma": Family("GemmaForCausalLM", _GEMMA),
    "gemma2": Family("Gemma2ForCausalLM", _GEMMA_2),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", _GEMMA_3, {"attn_logit_softcapping": ((None,), _UNCAPPED)}
    ),
}
"""The supported families by ``model_type``; SmolLM2, TinyLlama and many others are ``llama``."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((None,), "quantized weights are not supported"),
    "compression_config": ((None,), "quantized weights are not supported"),
    "use_bidirectional_attention": ((None, False), "only causal attention is supported"),
    "is_encoder_decoder": ((None, False), "only decoders are supported"),
    "add_cross_attention": ((None, False), "only decoders are supported"),
    "per_layer_config": ((None, {}), "all layers must have the same sizes"),
    "pruned_heads": ((None, {}), "all layers must have the same sizes"),
    "partial_rotary_factor": ((None, 1), "rotary angles apply to whole heads"),
}
"""Keys of every family that must have one of the neutral values, each with the reason."""

NO_EFFECT: dict[str, str] = {
    "model_type": "selects the family",
    "architectures": "list of class names; the model type decides",
    "transformers_version": "version that wrote the file",
    "dtype": "dtype of the files; `model.param_dtype` decides",
    "torch_dtype": "older name of `dtype`",
    "initializer_range": "only for new parameters",
    "attention_dropout": "this package trains without dropout",
    "use_cache": "a matter of the runtime",
    "chunk_size_feed_forward": "chunking does not change the numbers",
    "pretraining_tp": "a matter of the runtime",
    "output_hidden_states": "form of the output",
    "output_attentions": "form of the output",
    "return_dict": "form of the output",
    "tie_last_hidden_states": "form of the output",
    "id2label": "only for classifiers",
    "label2id": "only for classifiers",
    "num_labels": "only for classifiers",
    "problem_type": "only for classifiers",
    "_name_or_path": "where the model came from",
    "name_or_path": "where the model came from",
    "_commit_hash": "where the model came from",
    "_attn_implementation": "a matter of the runtime",
    "_attn_implementation_autoset": "a matter of the runtime",
    "attn_implementation": "a matter of the runtime",
    "_sliding_window_pattern": "`layer_types` holds the result",
    "is_decoder": "every family here is a decoder",
    "use_bfloat16": "a matter of the runtime",
    "torchscript": "a matter of the runtime",
    "transformers.js_config": "only for browsers",
}
"""Keys that do not change the logits, with the reason."""

COMPOSITES = {"gemma3": ("text_config", "gemma3_text")}
"""Multi-modal families whose text model is read: the key of its section, and its family."""
ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast"),
        *("beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    ),
}
"""Rotary types that are implemented, each with its keys beside ``rope_type`` and ``rope_theta``."""


def check_refused(config: HfConfig, family: str) -> None:
    """Raise an error if a key that must be neutral is not.

    Args:
        config: content of ``config.json``, or of its text section.
        family: model type, a key of :data:`FAMILIES`.

    Raises:
        ValueError: if such a key has content; the message names it.

    Examples:
        >>> check_refused({"is_encoder_decoder": True}, "llama")
        Traceback (most recent call last):
        ValueError: `is_encoder_decoder` must be absent, got True: only decoders are supported
    """
    for key, (neutral, reason) in {**REFUSED, **FAMILIES[family].refused}.items():
        value = config.get(key)
        if not any(value == each and type(value) in (type(each), float) for each in neutral):
            raise ValueError(f"`{key}` must be absent, got {reprlib.repr(value)}: {reason}")


def unused_keys(config: HfConfig, family: str) -> list[str]:
    """Return the keys with content that neither this package nor the family's class reads.

    Args:
        config: content of ``config.json``, or of its text section.
        family: model type, a key of :data:`FAMILIES`.

    Returns:
        The names, sorted; keys of :data:`NO_EFFECT` are left out.

    Examples:
        >>> unused_keys({"vocab_size": 8, "use_cache": True, "residual_scale": 2.0}, "llama")
        ['residual_scale']
    """
    known = {*FAMILIES[family].used, *FAMILIES[family].refused, *REFUSED, *NO_EFFECT}
    return sorted(key for key, value in config.items() if key not in known and _has_content(value))


def _has_content(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})
