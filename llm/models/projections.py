"""Linear maps of a decoder with optional low-rank adapters, and adapters of its tables.

The parameters of all layers are stacked, see :mod:`llm.models.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from llm.precision import accumulation_dtype

from .custom_vjp import project
from .quantization import QuantizedKernel

PROJECTIONS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
"""Projections of a layer, with their names in Hugging Face models."""

Collective = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """Return ``x``: the single-device stand-in for a tensor-parallel collective.

    Args:
        x: any array.

    Returns:
        The same array.

    Examples:
        >>> identity(jnp.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    return x


class AdapterScale(nnx.Variable[Array]):
    """Factor of an adapter's product, one number per layer; it is not trained."""


class Adapter(nnx.Module):
    """Low-rank addition to a projection: ``scale * (x A) B``.

    Args:
        stack: leading axes of the parameters.
        n_in: size of the input.
        n_out: size of the output.
        rank: number of columns of ``A``.
        scale: factor of the product: a number, or an array with the axes ``stack``.
        dropout: share of the inputs of ``A`` that is 0 while :attr:`dropout_key` is set.
        rngs: ``A`` is drawn from the stream ``params``; ``B`` starts at zero.
        param_dtype: dtype of the parameters.

    Attributes:
        dropout_key: key of the dropout mask; None for no dropout.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        n_in: int,
        n_out: int,
        rank: int,
        *,
        scale: ArrayLike,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dropout: float = 0.0,
    ) -> None:
        """Draw the parameters."""
        a = jax.random.normal(rngs.params(), (*stack, n_in, rank), param_dtype)
        self.a: nnx.LoRAParam[Array] = nnx.LoRAParam(a * n_in**-0.5)
        self.b: nnx.LoRAParam[Array] = nnx.LoRAParam(jnp.zeros((*stack, rank, n_out), param_dtype))
        wide = accumulation_dtype(param_dtype)
        self.scale: AdapterScale = AdapterScale(jnp.broadcast_to(jnp.asarray(scale, wide), stack))
        self.dropout: float = dropout
        self.dropout_key: Array | None = nnx.data(None)

    def __call__(self, x: Float[Array, "r T I"]) -> Float[Array, "r T O"]:
        """Return what the adapter adds to the output of its projection."""
        if self.dropout_key is not None and self.dropout > 0:
            kept = jax.random.bernoulli(self.dropout_key, 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), 0)
        inner = project(x, self.a[...].astype(x.dtype))
        return project(inner, self.b[...].astype(x.dtype)) * self.scale[...].astype(x.dtype)


class TableAdapter(nnx.Module):
    """Low-rank addition to an embedding or an output head: ``W + scale * A B``.

    Args:
        n_tokens: number of rows of ``W``.
        width: number of columns of ``W``.
        rank: number of columns of ``A``.
        scale: factor of the product.
        rngs: ``B`` is drawn from the stream ``params``; ``A`` starts at zero.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self,
        n_tokens: int,
        width: int,
        rank: int,
        *,
        scale: float,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
    ) -> None:
        """Draw the parameters."""
        b = jax.random.normal(rngs.params(), (rank, width), param_dtype)
        self.a: nnx.LoRAParam[Array] = nnx.LoRAParam(jnp.zeros((n_tokens, rank), param_dtype))
        self.b: nnx.LoRAParam[Array] = nnx.LoRAParam(b * width**-0.5)
        self.scale: AdapterScale = AdapterScale(jnp.asarray(scale, accumulation_dtype(param_dtype)))

    def __call__(
        self, table: Float[Array, "V D"], broadcast: Collective = identity
    ) -> Float[Array, "V D"]:
        """Return the table with the product added, in float32 at least.

        Args:
            table: the weight, or the device's shard of its rows.
            broadcast: collective for the gradient of ``B``, which every device holds whole.
        """
        wide = accumulation_dtype(table.dtype)
        a, b = self.a[...].astype(wide), broadcast(self.b[...]).astype(wide)
        return table.astype(wide) + jnp.matmul(a, b, precision="highest") * self.scale[...]


class Projection(nnx.Module):
    """Linear map ``x W + b``, with an optional low-rank adapter.

    Args:
        stack: leading axes of the parameters.
        n_in: size of the input.
        n_out: size of the output.
        bias: whether there is a bias ``b``.
        rngs: ``W`` is drawn from the stream ``params`` with variance ``1 / n_in``; ``b`` starts at
            zero.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        n_in: int,
        n_out: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
    ) -> None:
        """Draw the parameters."""
        kernel = jax.random.normal(rngs.params(), (*stack, n_in, n_out), param_dtype)
        self.kernel: nnx.Param[Array] | QuantizedKernel = nnx.Param(kernel * n_in**-0.5)
        zeros = nnx.Param(jnp.zeros((*stack, n_out), param_dtype)) if bias else None
        self.bias: nnx.Param[Array] | None = nnx.data(zeros)
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "r T I"], reduce: Collective = identity
    ) -> Float[Array, "r T O"]:
        """Apply the projection in the dtype of ``x``.

        Args:
            x: input, with features on the last axis.
            reduce: collective that sums partial products over devices; for row-parallel layers.

        Returns:
            The output, in the dtype of ``x``.
        """
        y = project(x, self.kernel[...].astype(x.dtype))
        return _add_terms(y, x, self.adapter, self.bias, reduce)


FEW_TOKENS = 64
"""Most tokens of which a CPU computes products as ``W x``, and not as ``x W``."""


def multiply_few(
    kernel: Float[Array, "O I"], tokens: Float[Array, "n I"], **options: Any
) -> Float[Array, "n O"]:
    """Multiply a kernel by tokens, which may be few, as a CPU does it fastest.

    Args:
        kernel: the kernel, stored by output.
        tokens: the tokens.
        **options: passed to :func:`jax.numpy.matmul`.

    Returns:
        The products of each token.

    Examples:
        >>> multiply_few(jnp.array([[1.0], [3.0]]), jnp.array([[2.0]])).tolist()
        [[2.0, 6.0]]
    """
    if len(tokens) > FEW_TOKENS:
        return jnp.matmul(tokens, kernel.T, **options)
    # XLA would simplify the two transpositions to the slower product.
    return jax.lax.optimization_barrier(jnp.matmul(kernel, tokens.T, **options)).T


class JointProjection(nnx.Module):
    """Several projections of one input as one product, with kernels stored by output.

    A CPU streams kernels ``[O I]`` times a few tokens faster than tokens times ``[I O]``: one token
    of 16 sequences takes 0.83 times as long.

    Args:
        parts: the projections, with stacked layers; their kernels are copied.
    """

    def __init__(self, parts: Sequence[Projection]) -> None:
        """Join the kernels along their outputs."""
        kernels = [part.kernel[...].swapaxes(-1, -2) for part in parts]
        self.kernel: nnx.Param[Array] = nnx.Param(jnp.concatenate(kernels, axis=-2))
        self.ends: tuple[int, ...] = tuple(accumulate(kernel.shape[-2] for kernel in kernels))
        self.adapters: Any = nnx.List([part.adapter for part in parts])
        self.biases: Any = nnx.List([part.bias for part in parts])

    def __call__(
        self, x: Float[Array, "r T I"], reduce: Collective = identity
    ) -> tuple[Float[Array, "r T O"], ...]:
        """Return the output of each projection, in the dtype of ``x``."""
        kernel, tokens = self.kernel[...].astype(x.dtype), x.reshape(-1, x.shape[-1])
        parts = jnp.split(multiply_few(kernel, tokens), self.ends[:-1], axis=-1)
        outputs = [part.reshape(*x.shape[:2], -1) for part in parts]
        terms = zip(outputs, self.adapters, self.biases, strict=True)
        return tuple(_add_terms(y, x, adapter, bias, reduce) for y, adapter, bias in terms)


def _add_terms(
    y: Array, x: Array, adapter: Adapter | None, bias: nnx.Param[Array] | None, reduce: Collective
) -> Array:
    """Add the adapter and the bias of a projection to its product."""
    y = reduce(y if adapter is None else y + adapter(x))
    return y if bias is None else y + bias[...].astype(x.dtype)
