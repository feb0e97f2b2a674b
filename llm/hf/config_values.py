"""Checked values of a ``config.json``: of the right type, and of a size that fits into memory."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

HfConfig = Mapping[str, Any]
"""The content of a ``config.json``."""
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


class ConfigReader:
    """Checked values of a ``config.json``; absent keys have the defaults of a model family.

    Args:
        config: the configuration, or its text section.
        defaults: keys of the family, with the value that stands for an absent key.

    Examples:
        >>> reader = ConfigReader({"num_hidden_layers": 2}, {"num_hidden_layers": 32, "eps": 1e-6})
        >>> reader.value("num_hidden_layers"), reader.value("eps", float), "scale" in reader
        (2, 1e-06, False)
    """

    def __init__(self, config: HfConfig, defaults: Mapping[str, Any]) -> None:
        """Keep the configuration."""
        self.config: HfConfig = config
        self.defaults: Mapping[str, Any] = defaults

    def __contains__(self, key: str) -> bool:
        """Return whether the family reads a key."""
        return key in self.defaults

    def value(self, key: str, kind: type[int] | type[float] = int) -> Any:
        """Read a key that must not be null; absent, it has the default of the family."""
        if key in self.config and self.config[key] is None:
            raise ValueError(f"`{key}` must be of type {kind.__name__}, got None")
        return read_value(self.config, key, kind, self.defaults[key])

    def optional(self, key: str, kind: type[int] | type[float] = int) -> Any:
        """Read a key that may be null; absent, it has the default of the family."""
        return read_optional(self.config, key, kind, self.defaults[key])

    def positive(self, key: str) -> int:
        """Read a size; 0 would stand for a default in an architecture."""
        return check_positive(key, self.value(key))


def check_positive(key: str, value: int) -> int:
    """Return a size of at least 1.

    Args:
        key: name of the key, for the message.
        value: the size.

    Returns:
        The same size.

    Raises:
        ValueError: if it is 0 or negative.

    Examples:
        >>> check_positive("head_dim", 64)
        64
    """
    if value < 1:
        raise ValueError(f"`{key}` must be positive, got {value}")
    return value
