"""Qwen 2 and 2.5: projections to queries, keys and values have a bias."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from .key_tables import ROPE, SIZES
from .record import Family, Fields
from .windows import read_windows, write_layer_types, write_window

KEYS = {
    **SIZES,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    **ROPE,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the windows: layers from ``max_window_layers`` on have one."""
    window, missing = keys.optional("sliding_window"), "`sliding_window` is null"
    if not keys.value("use_sliding_window", bool):
        window, missing = None, "`use_sliding_window` is false or absent"
    first = keys.value("max_window_layers")
    layers = range(keys.value("num_hidden_layers"))
    local = tuple(window is not None and layer >= first for layer in layers)
    return read_windows(keys, window, local, missing=missing)


def write(a: Architecture) -> Fields:
    """Return the keys of the windows."""
    keys = {"use_sliding_window": bool(a.local_layers), **write_window(a)}
    return keys | write_layer_types(a) if a.local_layers else keys


FAMILY = Family(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    keys=KEYS,
    fixed={"qkv_bias": True},
    read=read,
    write=write,
)
