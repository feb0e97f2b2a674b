"""Checked values of a ``config.json``: of the right type, and of a size that fits into memory."""

from __future__ import annotations

import reprlib
from typing import Any

from .config_keys import HfConfig

MAX_SIZES = {"num_hidden_layers": 10_000, "num_attention_heads": 10_000}
"""Sizes above these would exhaust memory before the model could be refused."""


def read_value(
    config: HfConfig, key: str, kind: type[int] | type[float], default: Any = None
) -> Any:
    """Read a number or a flag.

    Args:
        config: object with the key.
        key: name of the key.
        kind: ``int``, ``float`` or ``bool``; whole numbers are accepted as ``float``.
        default: value of an absent or null key; None refuses it.

    Returns:
        The value, of type ``kind``.

    Raises:
        ValueError: if the value is missing, of another type, not finite or too large.

    Examples:
        >>> read_value({"rope_theta": 500}, "rope_theta", float)
        500.0
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"`{key}` is missing from the model's configuration")
        return default
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"`{key}` must be of type {kind.__name__}, got {reprlib.repr(value)}")
    # The negation also refuses NaN.
    if not abs(value) < (1e300 if kind is float else MAX_SIZES.get(key, 2**31)):
        raise ValueError(f"`{key}` is too large, got {reprlib.repr(value)}")
    return kind(value)


def read_optional(
    config: HfConfig, key: str, kind: type[int] | type[float], default: Any = None
) -> Any:
    """Read a value that may be null.

    Args:
        config: object with the key.
        key: name of the key.
        kind: see :func:`read_value`.
        default: value of an absent key; a key that is null stays None.

    Returns:
        The value or None.

    Raises:
        ValueError: see :func:`read_value`.

    Examples:
        >>> read_optional({"sliding_window": None}, "sliding_window", int, 4096) is None
        True
    """
    return None if config.get(key, default) is None else read_value(config, key, kind, default)
