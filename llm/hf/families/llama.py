"""Llama 1 to 3; SmolLM2, TinyLlama and many others have the same model type."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from .key_tables import ROPE, SIZES
from .record import Family, Fields

KEYS = {**SIZES, "hidden_act": "silu", **ROPE, "attention_bias": False, "mlp_bias": False}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the biases."""
    bias = keys.value("attention_bias", bool)
    return {"qkv_bias": bias, "o_proj_bias": bias, "mlp_bias": keys.value("mlp_bias", bool)}


def write(a: Architecture) -> Fields:
    """Return the keys of the biases."""
    return {"attention_bias": a.o_proj_bias, "mlp_bias": a.mlp_bias}


FAMILY = Family(
    model_type="llama",
    class_name="LlamaForCausalLM",
    keys=KEYS,
    divided_heads=True,
    read=read,
    write=write,
)
