"""State of a run as nested dictionaries, the form in which checkpoints store it."""

from __future__ import annotations

from typing import Any

import jax

from .fingerprint import parameter_path


def nest_state(state: Any) -> dict[str, Any]:
    """Return the leaves of a tree in nested dictionaries, by the path of each parameter.

    Args:
        state: a tree of arrays, or of their shapes.

    Examples:
        >>> nest_state({"layer": [1.0, 2.0]})["layer"]["1"].tolist()
        2.0
    """
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        *parents, name = parameter_path(path)
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        level[name] = leaf if is_shape else jax.numpy.asarray(leaf)
    return nested


def leaf_at(nested: dict[str, Any], path: tuple[Any, ...]) -> Any:
    """Return one leaf of nested dictionaries.

    Args:
        nested: result of :func:`nest_state`.
        path: path of the leaf in the tree, of :func:`jax.tree_util.tree_flatten_with_path`.

    Examples:
        >>> (path, _), *_ = jax.tree_util.tree_flatten_with_path({"layer": 3.0})[0]
        >>> leaf_at({"layer": 3.0}, path)
        3.0
    """
    for name in parameter_path(path):
        nested = nested[name]
    return nested
