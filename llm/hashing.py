"""Digests of strings and of trees of arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from llm.parallel.mesh import on_host


def weights_digest(parameters: Any) -> str:
    """SHA-256 of a tree of arrays: names, dtypes, shapes and values.

    Args:
        parameters: the tree, an ``nnx.State`` for instance.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> weights_digest({"a": jnp.zeros(1)}) == weights_digest({"b": jnp.zeros(1)})
        False
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        # One array at a time comes to the host.
        array = np.ascontiguousarray(on_host(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.view(np.uint8).reshape(-1).data)
    return total.hexdigest()
