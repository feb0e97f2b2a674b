"""Precision of matrix products, and dtypes to accumulate in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Compute in a dtype at its full precision on every device, within a ``with`` block.

    By default JAX rounds the factors of a float32 product to TF32 on a GPU (10 bits) and to
    bfloat16 on a TPU (7 bits). Within the block they keep their 23 bits. Float64 is enabled for
    ``float64`` only; products of bfloat16 are unchanged.

    Args:
        dtype: dtype of the activations: ``float64``, ``float32`` or ``bfloat16``.

    Yields:
        None.

    Examples:
        >>> import jax.numpy as jnp
        >>> with computing_in("float64"):
        ...     print(jnp.ones(3).dtype)
        float64
    """
    precision = None if dtype == "bfloat16" else "highest"
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(precision):
        yield


def accumulation_dtype(dtype: DTypeLike) -> np.dtype:
    """Return the dtype for sums and exponentials of numbers: their own, but float32 at least.

    Args:
        dtype: a floating dtype.

    Returns:
        The wider of ``dtype`` and float32.

    Examples:
        >>> [str(accumulation_dtype(name)) for name in ("bfloat16", "float64")]
        ['float32', 'float64']
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
