"""Sliding windows: which layers of a model have one, and how wide it is."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from .record import Fields

LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


def read_windows(
    keys: ConfigReader,
    window: int | None,
    local: Sequence[bool],
    *,
    missing: str = "`sliding_window` is null",
) -> Fields:
    """Return the fields of an architecture that describe its windows.

    Args:
        keys: the configuration; ``layer_types`` is read if the family has the key.
        window: positions that a token of a local layer attends to; None for no window.
        local: one flag per layer that stands for an absent ``layer_types``.
        missing: why there is no window, for the message if layers need one.

    Returns:
        ``sliding_window`` and ``local_layers``; nothing if no layer is local.

    Raises:
        ValueError: if ``layer_types`` is no list of one known type per layer, or names local layers
            without a window.

    Examples:
        >>> keys = ConfigReader({}, {"layer_types": None})
        >>> read_windows(keys, 4, (True, False))
        {'sliding_window': 4, 'local_layers': (True, False)}
    """
    if "layer_types" in keys and keys.config.get("layer_types") is not None:
        local = _listed_layers(keys.config["layer_types"], len(local))
    if any(local) and window is None:
        raise ValueError(
            f"`layer_types` has sliding_attention, but {missing}: change one of the two keys"
        )
    return {"sliding_window": window, "local_layers": tuple(local)} if any(local) else {}


def all_but_every(period: int, n_layers: int) -> tuple[bool, ...]:
    """Flag all layers but every ``period``-th one.

    Args:
        period: distance of the layers without a flag.
        n_layers: number of layers.

    Returns:
        One flag per layer.

    Examples:
        >>> all_but_every(3, 4)
        (True, True, False, True)
    """
    return tuple((layer + 1) % period != 0 for layer in range(n_layers))


def write_layer_types(architecture: Architecture) -> Fields:
    """Return the key that says which layers have a window.

    Args:
        architecture: the architecture.

    Returns:
        ``layer_types``.
    """
    flags = architecture.local_layers or (False,) * architecture.num_hidden_layers
    return {"layer_types": ["sliding_attention" if local else "full_attention" for local in flags]}


def write_window(architecture: Architecture) -> Fields:
    """Return the key of the window, if a layer has one.

    Args:
        architecture: the architecture.

    Returns:
        ``sliding_window``, or nothing.
    """
    return {"sliding_window": architecture.sliding_window} if architecture.local_layers else {}


def _listed_layers(layer_types: Any, n_layers: int) -> tuple[bool, ...]:
    if not isinstance(layer_types, list):
        raise ValueError(f"`layer_types` must be a list, got {reprlib.repr(layer_types)}")
    for layer_type in layer_types:
        if not isinstance(layer_type, str) or layer_type not in LAYER_TYPES:
            raise ValueError(
                "`layer_types` must be full_attention or sliding_attention, got "
                f"{reprlib.repr(layer_type)}"
            )
    if len(layer_types) != n_layers:
        raise ValueError(
            f"`layer_types` must have one entry for each of {n_layers} layers, got "
            f"{len(layer_types)}"
        )
    return tuple(LAYER_TYPES[layer_type] for layer_type in layer_types)
