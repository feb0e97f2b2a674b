"""Checks of the values of configurations; each error names the key and the valid values."""

from __future__ import annotations

import math
from typing import Any, get_args

SMALLEST, LARGEST = 2.0**-126, 3.4028234e38
"""Range of positive float32 numbers; devices replace smaller ones by 0."""


def path_or_architecture(path: Any, architecture: Any) -> None:
    """Refuse a model that is given both by a path and by an architecture, or by neither."""
    if path is None and architecture is None:
        raise ValueError(
            "`model.path` is missing: give it, or `model.architecture` for random parameters"
        )
    if path is not None and architecture is not None:
        raise ValueError("`model.path` and `model.architecture` must not both be given: give one")


def at_least(name: str, value: int, bound: int) -> None:
    """Refuse a value that is not a whole number from ``bound`` to 2^31 - 1."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (is_whole and bound <= value < 2**31):
        raise ValueError(
            f"`{name}` must be a whole number from {bound} to {2**31 - 1}, got {value!r}"
        )


def positive(name: str, value: float) -> None:
    """Refuse a value that is not a positive number of float32."""
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {value}")
    _in_float32(name, value)


def zero_or_positive(name: str, value: float) -> None:
    """Refuse a value that is neither 0 nor a positive number of float32."""
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be 0 or more and finite, got {value}")
    if value:
        _in_float32(name, value)


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside of the half-open interval from ``low`` to ``high``.

    Examples:
        >>> between("objective.label_smoothing", 0.1, 0.0, 0.5)
    """
    if not low <= value < high:
        raise ValueError(f"`{name}` must be in [{low:g}, {high:g}), got {value}")


def _in_float32(name: str, value: float) -> None:
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"`{name}` must be in the range of float32, {SMALLEST:.3g} to {LARGEST:.3g}, "
            f"got {value}"
        )


def one_of(name: str, value: Any, allowed: Any) -> None:
    """Refuse a value outside a literal type."""
    if value not in get_args(allowed):
        names = ", ".join(map(repr, get_args(allowed)))
        raise ValueError(f"`{name}` must be one of {names}, got {value!r}")
