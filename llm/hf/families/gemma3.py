"""Gemma 3, and the text model of Gemma 3 with images (4B to 27B)."""

from __future__ import annotations

from dataclasses import replace

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import gemma, gemma2
from .record import Composite, Family, Fields
from .windows import all_but_every, read_windows

_ABSENT = ("attn_logit_softcapping", "original_max_position_embeddings")
KEYS = {
    **{key: value for key, value in gemma2.KEYS.items() if key not in _ABSENT},
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
}
UNCAPPED = "transformers reads the key and does not apply it, so its meaning is open"


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias, the caps, the scale of attention and the windows."""
    layers, window = keys.value("num_hidden_layers"), keys.value("sliding_window")
    local = all_but_every(keys.positive("sliding_window_pattern"), layers)
    return gemma2.read_scale_and_caps(keys) | read_windows(keys, window, local)


def explicit(a: Architecture) -> Architecture:
    """Return the architecture with the scale of attention and the local layers' rotary base."""
    return explicit_local_base(gemma2.explicit(a))


def explicit_local_base(a: Architecture) -> Architecture:
    """Return the architecture with a value for the base of the local layers' rotary angles."""
    is_open = a.local_layers and a.rope_local_base_freq is None and a.rope_scaling is None
    return replace(a, rope_local_base_freq=a.rope_theta) if is_open else a


FAMILY = Family(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    refused={"attn_logit_softcapping": ((None,), UNCAPPED)},
    fixed={**gemma.FIXED, "post_norms": True, "qk_norm": True},
    read=read,
    write=gemma2.write,
    explicit=explicit,
    divided_heads=True,
    rope_by_layer_type=True,
)
COMPOSITE = Composite(
    model_type="gemma3",
    section="text_config",
    families=("gemma3_text",),
    keys=("vision_config", "mm_tokens_per_image"),
)
