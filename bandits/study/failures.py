"""Fits of a study that gave no policy, such as those of a method of the user's own that raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

FAILURE_COLUMNS = ("label", "status", "message")
"""Columns of the records from which failures are counted."""


def count_failures(records: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Count the fits of each method that gave no policy.

    Args:
        records: tables with one row per fit, see :mod:`bandits.study.run`; read one at a time.

    Returns:
        One row for each label with failures: ``label``, the numbers of ``fits`` and of ``failed``
        ones, and the ``message`` of the first failure.

    Examples:
        >>> columns = {"label": ["a", "a"], "status": ["SOLVED", "FAILED"], "message": [None, "no"]}
        >>> count_failures([pa.table(columns)])
        [{'label': 'a', 'fits': 2, 'failed': 1, 'message': 'no'}]
    """
    counts: dict[str, dict[str, Any]] = {}
    for table in records:
        labels: np.ndarray = table["label"].to_numpy()
        failed = table["status"].to_numpy() == "FAILED"
        messages: np.ndarray = table["message"].to_numpy()
        for label in dict.fromkeys(labels.tolist()):
            rows = labels == label
            found = messages[rows & failed].tolist()
            row = counts.setdefault(label, {"label": label, "fits": 0, "failed": 0, "message": ""})
            row["fits"] += int(rows.sum())
            row["failed"] += len(found)
            row["message"] = row["message"] or next(iter(found), "")
    return [row for row in counts.values() if row["failed"]]
