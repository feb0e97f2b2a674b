"""Gemma 1: scaled embeddings, norms that multiply by one plus a weight, a tied output head."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from .key_tables import ROPE, SIZES
from .record import Family, Fields

KEYS = {
    **SIZES,
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
    **ROPE,
    "attention_bias": False,
}
FIXED = {"norm_plus_one": True, "scaled_embeddings": True}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias."""
    bias = keys.value("attention_bias", bool)
    return {"qkv_bias": bias, "o_proj_bias": bias}


def write(a: Architecture) -> Fields:
    """Return the key of the bias."""
    return {"attention_bias": a.o_proj_bias}


FAMILY = Family(
    model_type="gemma",
    class_name="GemmaForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    fixed=FIXED,
    read=read,
    write=write,
    activations={"gelu": "gelu_pytorch_tanh"},  # the first configurations call it gelu
)
