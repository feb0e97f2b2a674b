"""The record that describes a model family, and what a family file writes down in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from ..tensor_mapping import TensorMapping

Fields = dict[str, Any]
"""Fields of an architecture, or keys of a ``config.json``, by name."""
Refusals = Mapping[str, tuple[tuple[Any, ...], str]]
"""Accepted values of a key, and the reason why others are refused, by key."""


def _no_fields(source: ConfigReader | Architecture) -> Fields:
    del source
    return {}


def _unchanged(architecture: Architecture) -> Architecture:
    return architecture


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family of Hugging Face, and its part in converting configurations and tensors.

    :mod:`llm.hf.config` reads the keys that all families share, such as ``hidden_size``; a family
    adds its features.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        class_name: class of ``transformers`` that loads an exported model.
        keys: keys that are read, with the value that stands for an absent key in ``transformers``.
        not_null: keys among them whose class refuses null, beside those that every family needs.
        refused: keys that only this family refuses, see :data:`llm.hf.config_keys.REFUSED`.
        fixed: fields of the architecture with the same value in every model of the family.
        read: returns the fields that follow from the family's own keys.
        write: returns the family's own keys for an architecture.
        explicit: returns an equal architecture with values for fields whose default differs here.
        divided_heads: whether ``hidden_size`` must be a multiple of ``num_attention_heads``.
        activations: names of activations that the class takes for another one.
        rope_by_layer_type: whether layers with and without a window have settings of their own.
        default_rope: rotary settings of a configuration that has none.
        rope_types: rotary types of this family; None for all. A value of the mapping is the type
            that its key stands for.
        rope_keys: keys of the rotary settings that only this family reads.
        names: names of a layer's tensors where they differ from
            :data:`llm.hf.names.LAYER_NAMES`, by module.
        experts: returns the mappings of router and experts from the names of the modules; None if
            each expert has a tensor of its own.
        fused: modules whose outputs one tensor holds one after another, by name of the tensor.
    """

    model_type: str
    class_name: str
    keys: Mapping[str, Any]
    not_null: tuple[str, ...] = ()
    refused: Refusals = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[ConfigReader], Fields] = _no_fields
    write: Callable[[Architecture], Fields] = _no_fields
    explicit: Callable[[Architecture], Architecture] = _unchanged
    divided_heads: bool = False
    activations: Mapping[str, str] = field(default_factory=dict)
    rope_by_layer_type: bool = False
    default_rope: Mapping[str, Any] = field(default_factory=dict)
    rope_types: Mapping[str, str] | None = None
    rope_keys: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    experts: Callable[[Architecture, Mapping[str, str]], list[TensorMapping]] | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Composite:
    """A family of models with images whose text model is read.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        section: key of the text model's section.
        families: families of text models; the first is that of a section without ``model_type``.
        keys: keys of the configuration that belong to the images.
    """

    model_type: str
    section: str
    families: tuple[str, ...]
    keys: tuple[str, ...] = ()
