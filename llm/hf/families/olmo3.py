"""OLMo 3: OLMo 2 with a window in three of four layers, whose rotary angles are never scaled."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import gemma, gemma3, olmo2
from .record import Family, Fields
from .windows import all_but_every, read_windows, write_layer_types, write_window

KEYS = {
    **{key: value for key, value in olmo2.KEYS.items() if not key.startswith("original")},
    "rope_theta": 5e5,
    "sliding_window": 4096,
    "layer_types": None,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias and of the windows."""
    local = all_but_every(4, keys.value("num_hidden_layers"))
    return gemma.read(keys) | read_windows(keys, keys.value("sliding_window"), local)


def write(a: Architecture) -> Fields:
    """Return the keys of the bias and of the windows."""
    return {**gemma.write(a), **write_window(a), **write_layer_types(a)}


FAMILY = Family(
    model_type="olmo3",
    class_name="Olmo3ForCausalLM",
    keys=KEYS,
    fixed=olmo2.FIXED,
    read=read,
    write=write,
    explicit=gemma3.explicit_local_base,
    rope_by_layer_type=True,
)
