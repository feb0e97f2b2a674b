"""Mistral: every layer has a window, if there is one. Also part of models with images."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from .key_tables import ROPE, SIZES
from .record import Composite, Family, Fields
from .windows import read_windows

KEYS = {
    **SIZES,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    **ROPE,
    "sliding_window": 4096,
    "layer_types": None,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the window."""
    window = keys.optional("sliding_window")
    return read_windows(keys, window, (window is not None,) * keys.value("num_hidden_layers"))


def write(a: Architecture) -> Fields:
    """Return the key of the window."""
    return {"sliding_window": a.sliding_window}


FAMILY = Family(
    model_type="mistral", class_name="MistralForCausalLM", keys=KEYS, read=read, write=write
)
COMPOSITE = Composite(
    model_type="mistral3",
    section="text_config",
    families=("mistral", "ministral3"),
    keys=(
        *("vision_config", "projector_hidden_act", "vision_feature_layer"),
        *("multimodal_projector_bias", "spatial_merge_size"),
    ),
)
"""Mistral Small 3 and Ministral 3 with images."""
