"""Ministral: Mistral with a window in some layers."""

from __future__ import annotations

from llm.models.architecture import Architecture

from . import mistral
from .record import Family, Fields
from .windows import write_layer_types


def write(a: Architecture) -> Fields:
    """Return the keys of the windows; the class wants a number in any case."""
    window = a.sliding_window or mistral.KEYS["sliding_window"]
    return {"sliding_window": window, **write_layer_types(a)}


FAMILY = Family(
    model_type="ministral",
    class_name="MinistralForCausalLM",
    keys=mistral.KEYS,
    read=mistral.read,
    write=write,
)
