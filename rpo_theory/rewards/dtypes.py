"""Conversion of the numbers of a reward class to float64."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Class = TypeVar("Class")


def to_float64(reward_class: Class) -> Class:
    """Convert the numbers of a reward class to float64; its indices and flags keep their type.

    Floats are converted, and so are Python integers and integers in a field that is annotated as
    ``float`` or ``Float``. Other arrays of integers, and booleans, may be indices and flags.

    Args:
        reward_class: any reward class, traced or not.

    Returns:
        The class with NumPy arrays, or JAX arrays where it is traced.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> to_float64(TabularBox(2)).maximum.dtype
        dtype('float64')
    """
    annotations = {}
    for kind in reversed(type(reward_class).__mro__):
        annotations.update(inspect.get_annotations(kind))

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        array = leaf if isinstance(leaf, Tracer | jax.Array) else np.asarray(leaf)
        field = jax.tree_util.keystr(path[:1], simple=True) if path else ""
        declared = "float" in str(annotations.get(field, "")).lower()
        is_integer = jnp.issubdtype(array.dtype, np.integer)
        counts = is_integer and (declared or type(leaf) is int)
        is_float = jnp.issubdtype(array.dtype, np.floating)
        return array.astype(np.float64) if counts or is_float else array

    return jax.tree_util.tree_map_with_path(convert, reward_class)
