"""JSON without NaN and infinities."""

from __future__ import annotations

import json
from typing import Any


def to_json(document: Any) -> bytes:
    """Strict JSON, indented by one level so that records stay on a line each.

    Args:
        document: a mapping of names to plain values or lists of records.

    Returns:
        The text, with a final line break.

    Raises:
        ValueError: a number is not finite.
    """
    parts = []
    for name, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n{rows}\n  ]" if rows else "[]"
        else:
            text = json.dumps(value, allow_nan=False)
        parts.append(f"  {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()
