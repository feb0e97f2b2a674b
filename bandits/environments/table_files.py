"""Files of bandits: NumPy archives and Parquet tables, read as the tables of a bandit.

A NumPy archive (``.npz``) has one array for each table of :mod:`bandits.environments.tables`. A
Parquet file has one row for each context and action, in any order, with the columns

====================================================== =========================================
column                                                 table
====================================================== =========================================
``context``, ``action``                                names; every context has every action
``true_reward``, ``behavior_policy``                   the same; needed
``reference_policy``, ``baseline_policy``,             the same; optional
``comparator``
``context_weight``, ``data_context``                   ``context_weights``, ``data_contexts``;
                                                       equal in all rows of a context; optional
====================================================== =========================================

Contexts and actions are numbered in the order of their names.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

OF_CONTEXTS = {"context_weight": "context_weights", "data_context": "data_contexts"}
"""Columns whose values are those of a context, and the names of their tables."""
OF_CELLS = ("true_reward", "behavior_policy", "reference_policy", "baseline_policy", "comparator")
"""Columns with one value for each context and action."""


def read_tables(path: Path) -> dict[str, Any]:
    """Read the tables of a bandit from a file.

    Args:
        path: a NumPy archive, ``.npz``, or a Parquet file, ``.parquet``.

    Returns:
        Arrays by name, as :func:`bandits.environments.tables.instance_from_tables` takes them.

    Raises:
        ValueError: if the file is damaged, of another kind, or a column is missing or unknown.
        OSError: if the file cannot be opened.
    """
    if path.suffix == ".npz":
        return _read_archive(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise ValueError(f"{path}: must be a NumPy archive (.npz) or a Parquet file (.parquet)")


def _read_archive(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise ValueError(f"{path}: is not a NumPy archive of arrays of numbers") from error


def _read_parquet(path: Path) -> dict[str, Any]:
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: is not a Parquet file, or damaged") from error
    known = ("context", "action", *OF_CELLS, *OF_CONTEXTS)
    for name in table.column_names:
        if name not in known:
            raise ValueError(f"{path}: unknown column `{name}`: the columns are {', '.join(known)}")
    for name in ("context", "action"):
        if name not in table.column_names:
            raise ValueError(f"{path}: the column `{name}` is missing")
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{path}: the column `{name}` has empty cells")
    contexts, row = np.unique(table["context"].to_numpy(zero_copy_only=False), return_inverse=True)
    actions, column = np.unique(table["action"].to_numpy(zero_copy_only=False), return_inverse=True)
    shape = len(contexts), len(actions)
    order = np.argsort(row * shape[1] + column, kind="stable")
    if not np.array_equal((row * shape[1] + column)[order], np.arange(shape[0] * shape[1])):
        rule = "must have one row for every context and action"
        raise ValueError(
            f"{path}: {rule}, got {table.num_rows} rows for {shape[0]} contexts and "
            f"{shape[1]} actions"
        )
    cells = {
        name: table[name].to_numpy(zero_copy_only=False)[order].reshape(shape)
        for name in table.column_names
        if name not in ("context", "action")
    }
    tables = {name: cells[name] for name in OF_CELLS if name in cells}
    for name, of_contexts in OF_CONTEXTS.items():
        if name in cells:
            if (cells[name] != cells[name][:, :1]).any():
                raise ValueError(f"{path}: the column `{name}` must not vary within a context")
            tables[of_contexts] = cells[name][:, 0]
    return tables
