"""The table of ``config.json`` keys: what each key of a model family does here.

A key is used, has no effect on the numbers, or is refused unless it has its neutral value. Keys
outside the table have no effect in ``transformers`` either; :func:`unused_keys` lists them. The
page ``docs/reference/model_configs.md`` is generated from this module.
"""

from __future__ import annotations

import reprlib
from typing import Any

from .config_values import HfConfig
from .families.record import Family

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
    "resid_pdrop": "this package trains without dropout",
    "embd_pdrop": "this package trains without dropout",
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
    "longrope": (
        *("short_factor", "long_factor", "factor", "attention_factor"),
        "original_max_position_embeddings",
    ),
}
"""Rotary types that are implemented, each with its keys beside ``rope_type`` and ``rope_theta``."""


def check_refused(config: HfConfig, family: Family) -> None:
    """Raise an error if a key that must be neutral is not.

    Args:
        config: content of ``config.json``, or of its text section.
        family: the model family.

    Raises:
        ValueError: if such a key has content; the message names it.

    Examples:
        >>> from llm.hf.families import llama
        >>> check_refused({"is_encoder_decoder": True}, llama.FAMILY)
        Traceback (most recent call last):
        ValueError: `is_encoder_decoder` must be absent, got True: only decoders are supported
    """
    for key, (neutral, reason) in {**REFUSED, **family.refused}.items():
        if key in family.keys:
            continue
        value = config.get(key)
        if not any(value == each and type(value) in (type(each), float) for each in neutral):
            raise ValueError(f"`{key}` must be absent, got {reprlib.repr(value)}: {reason}")


def unused_keys(config: HfConfig, family: Family) -> list[str]:
    """Return the keys with content that neither this package nor the family's class reads.

    Args:
        config: content of ``config.json``, or of its text section.
        family: the model family.

    Returns:
        The names, sorted; keys of :data:`NO_EFFECT` are left out.

    Examples:
        >>> from llm.hf.families import llama
        >>> config = {"vocab_size": 8, "use_cache": True, "residual_scale": 2.0}
        >>> unused_keys(config, llama.FAMILY)
        ['residual_scale']
    """
    known = {*family.keys, *family.refused, *REFUSED, *NO_EFFECT}
    return sorted(key for key, value in config.items() if key not in known and _has_content(value))


def _has_content(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})
