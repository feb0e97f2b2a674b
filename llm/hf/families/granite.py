"""Granite 3: Llama with factors of embeddings, residuals, attention logits and output logits."""

from __future__ import annotations

from dataclasses import replace

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import llama
from .record import Family, Fields

MULTIPLIERS = (
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the biases and of the factors."""
    return llama.read(keys) | {key: keys.value(key, float) for key in MULTIPLIERS}


def write(a: Architecture) -> Fields:
    """Return the keys of the biases and of the factors."""
    return llama.write(a) | {key: getattr(a, key) for key in MULTIPLIERS}


def explicit(a: Architecture) -> Architecture:
    """Return the architecture with a value for the factor of attention logits."""
    return replace(a, attention_multiplier=a.attention_scale, query_pre_attn_scalar=None)


FAMILY = Family(
    model_type="granite",
    class_name="GraniteForCausalLM",
    keys={**llama.KEYS, **dict.fromkeys(MULTIPLIERS, 1.0)},
    read=read,
    write=write,
    explicit=explicit,
)
