"""Gemma 2: norms after attention and MLP, soft caps, a window in every other layer."""

from __future__ import annotations

from dataclasses import replace

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import gemma
from .record import Family, Fields
from .windows import all_but_every, read_windows, write_layer_types, write_window

KEYS = {
    **{key: value for key, value in gemma.KEYS.items() if key != "hidden_act"},
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
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias, the caps, the scale of attention and the windows."""
    local = all_but_every(2, keys.value("num_hidden_layers"))
    return read_scale_and_caps(keys) | read_windows(keys, keys.value("sliding_window"), local)


def read_scale_and_caps(keys: ConfigReader) -> Fields:
    """Return the fields of the bias, the caps and the scale of attention."""
    return {
        **gemma.read(keys),
        **{key: keys.optional(key, float) for key in CAPS if key in keys},
        "query_pre_attn_scalar": keys.value("query_pre_attn_scalar"),
    }


def write(a: Architecture) -> Fields:
    """Return the keys of the bias, the windows, the caps and the scale of attention."""
    return {
        **gemma.write(a),
        **write_window(a),
        **write_layer_types(a),
        "query_pre_attn_scalar": a.query_pre_attn_scalar,
        "attn_logit_softcapping": a.attn_logit_softcapping,
        "final_logit_softcapping": a.final_logit_softcapping,
    }


def explicit(a: Architecture) -> Architecture:
    """Return the architecture with a value for the scale of attention."""
    return a if a.query_pre_attn_scalar else replace(a, query_pre_attn_scalar=a.head_dim)


FAMILY = Family(
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    fixed={**gemma.FIXED, "post_norms": True},
    read=read,
    write=write,
    explicit=explicit,
    divided_heads=True,
)
