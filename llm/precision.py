"""What a product of matrices is computed in: the dtype that was asked for, on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Within it JAX has float64 if it is asked for, and float32 is float32 on every device.

    By default JAX rounds the factors of a float32 product to TF32 on a GPU, to bfloat16 on a TPU:
    to 10 and 7 bits. A run that asks for float32 gets 23. Kernels of bfloat16 are left as they are.

    Args:
        dtype: ``float64``, ``float32`` or ``bfloat16``: of the activations.

    Yields:
        Nothing.

    Examples:
        >>> import jax.numpy as jnp
        >>> with computing_in("float64"):
        ...     print(jnp.ones(3).dtype)
        float64
    """
    products = None if dtype == "bfloat16" else "highest"
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(products):
        yield


def accumulation_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype to sum and exponentiate in: the given one, but float32 at least.

    Args:
        dtype: a floating dtype.

    Returns:
        A dtype.

    Examples:
        >>> [str(accumulation_dtype(name)) for name in ("bfloat16", "float64")]
        ['float32', 'float64']
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
