"""SmolLM 3: Llama without rotary angles in every fourth layer."""

from __future__ import annotations

import reprlib

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import llama
from .record import Family, Fields
from .windows import all_but_every, read_windows, write_layer_types, write_window

KEYS = {
    **llama.KEYS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "pad_token_id": 128004,
    "rope_theta": 2e6,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": None,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the biases, the rotated layers and the windows."""
    rotated = _rotated_layers(keys)
    window, missing = keys.optional("sliding_window"), "`sliding_window` is null"
    if not keys.value("use_sliding_window", bool):
        window, missing = None, "`use_sliding_window` is false or absent"
    local = tuple(window is not None and not rope for rope in rotated)
    windows = read_windows(keys, window, local, missing=missing)
    return {**llama.read(keys), "rope_layers": rotated, **windows}


def write(a: Architecture) -> Fields:
    """Return the keys of the biases, the rotated layers and the windows."""
    return {
        **llama.write(a),
        "no_rope_layers": [int(rope) for rope in a.rope_layers or (True,) * a.num_hidden_layers],
        "use_sliding_window": bool(a.local_layers),
        **write_window(a),
        **write_layer_types(a),
    }


def _rotated_layers(keys: ConfigReader) -> tuple[bool, ...]:
    """Return one flag per layer; despite its name, 1 in ``no_rope_layers`` is a rotated layer."""
    layers, listed = keys.value("num_hidden_layers"), keys.config.get("no_rope_layers")
    if listed is None:
        return all_but_every(keys.positive("no_rope_layer_interval"), layers)
    if not isinstance(listed, list) or not all(flag in (0, 1) for flag in listed):
        raise ValueError(f"`no_rope_layers` must be a list of 0 and 1, got {reprlib.repr(listed)}")
    if len(listed) < layers:
        raise ValueError(
            f"`no_rope_layers` must have one entry for each of {layers} layers, got {len(listed)}"
        )
    return tuple(map(bool, listed[:layers]))


FAMILY = Family(
    model_type="smollm3", class_name="SmolLM3ForCausalLM", keys=KEYS, read=read, write=write
)
