"""SHA-256 digests of model parameters and other trees of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from llm.parallel.mesh import on_host
from rpo_io.digests import sha256_of_chunks


def weights_digest(tree: Any) -> str:
    """Return the SHA-256 digest of a tree of arrays: names, dtypes, shapes and values.

    One array at a time is copied to the host. On several processes all must call this function.

    Args:
        tree: any pytree of arrays, such as an ``nnx.State``.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> weights_digest({"a": jnp.zeros(1)}) == weights_digest({"b": jnp.zeros(1)})
        False
    """
    return sha256_of_chunks(_chunks(tree))


def parameters_sha256(trainable: Any, frozen: Any) -> str:
    """Return the digest of all parameters of a model, as ``metrics.jsonl`` holds it.

    Args:
        trainable: the parameters that are trained, an ``nnx.State``.
        frozen: the other parameters, an ``nnx.State``; empty in full fine-tuning.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> len(parameters_sha256({"kernel": jnp.zeros((2, 2))}, {}))
        64
    """
    return weights_digest((trainable, frozen))


def _chunks(tree: Any) -> Iterator[bytes | memoryview]:
    """Yield a header and the values of every array."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(on_host(leaf))
        yield f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode()
        yield array.view(np.uint8).reshape(-1).data
