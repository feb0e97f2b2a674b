"""Qwen 3: queries and keys are normalized head by head."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import qwen2
from .record import Family, Fields

KEYS = {**qwen2.KEYS, "head_dim": 128, "attention_bias": False}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias and of the windows."""
    bias = keys.value("attention_bias", bool)
    return {"qkv_bias": bias, "o_proj_bias": bias, **qwen2.read(keys)}


def write(a: Architecture) -> Fields:
    """Return the keys of the bias and of the windows."""
    return {"attention_bias": a.o_proj_bias, **qwen2.write(a)}


FAMILY = Family(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    keys=KEYS,
    fixed={"qk_norm": True},
    read=read,
    write=write,
)
