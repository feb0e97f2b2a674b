"""Strict JSON: numbers are finite; NaN and infinities are refused, or replaced by null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def null_non_finite(value: Any) -> Any:
    """Return plain Python values in which every number that is not finite is None.

    Args:
        value: a number, string, None, array, or a nest of lists, tuples and mappings of them.

    Returns:
        The same value as numbers, strings, lists and dictionaries that JSON can hold.

    Examples:
        >>> null_non_finite({"gap": float("inf"), "policy": np.array([0.5, np.nan])})
        {'gap': None, 'policy': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {name: null_non_finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_non_finite(item) for item in value]
    if hasattr(value, "__array__"):
        return null_non_finite(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def format_line(value: Any) -> str:
    """Format a value as one line of JSON without a final line break.

    Args:
        value: plain values, lists and dictionaries.

    Returns:
        The text.

    Raises:
        ValueError: if a number is not finite.

    Examples:
        >>> format_line({"step": 1, "loss": 0.5})
        '{"step": 1, "loss": 0.5}'
    """
    return json.dumps(value, allow_nan=False)


def format_document(document: Mapping[str, Any]) -> str:
    """Format an object as JSON with one line per key and one line per record.

    Args:
        document: plain values by name; a list of dictionaries is a list of records.

    Returns:
        The text, with a final line break.

    Raises:
        ValueError: if a number is not finite.

    Examples:
        >>> print(format_document({"value": 0.5, "claims": [{"holds": True}]}), end="")
        {
          "value": 0.5,
          "claims": [
            {"holds": true}
          ]
        }
    """
    parts = []
    for name, value in document.items():
        text = format_line(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"    {format_line(row)}" for row in value) + "\n  ]"
        parts.append(f"  {format_line(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
