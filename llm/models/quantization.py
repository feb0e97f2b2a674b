r"""Matrices in 8 or 4 bits, for base weights that are frozen under adapters (QLoRA).

The inputs of a matrix form blocks of 64. A block of a column has one scale, its largest absolute
value, and every weight is the nearest of a few levels times that scale:

.. math:: W_{io} \approx s_{b(i),o}\,\ell_{c_{io}},\qquad s_{b,o} = \max_{i\in b}|W_{io}|

``int8`` has the levels :math:`-127/127, \dots, 127/127`. ``nf4`` has 16 levels, quantiles of the
normal distribution, of which one is 0. Codes of ``nf4`` are packed two to a byte: byte ``j`` of a
block of ``b`` inputs holds input ``j`` in its low half and input ``j + b/2`` in its high half.

References:
    `dettmers:23` for ``nf4``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int8, UInt8

from llm.config.model import QuantizationName
from llm.precision import accumulation_dtype

BLOCK = 64
"""Largest number of inputs that share a scale."""
INT8_LEVELS = 127
"""Positive levels of ``int8``."""
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Levels of ``nf4``."""


def block_size(n_inputs: int) -> int:
    """Return the number of inputs that share a scale.

    Args:
        n_inputs: number of inputs of a matrix.

    Returns:
        The largest even divisor of ``n_inputs`` up to :data:`BLOCK`.

    Raises:
        ValueError: if the number of inputs is odd.

    Examples:
        >>> [block_size(n) for n in (4096, 96, 8)]
        [64, 48, 8]
    """
    if n_inputs % 2:
        raise ValueError(
            f"`model.quantization` needs matrices with an even number of inputs, got {n_inputs}"
        )
    return next(size for size in range(BLOCK, 0, -2) if n_inputs % size == 0)


def quantize(
    kernel: Float[Array, "*stack I O"], quantization: QuantizationName
) -> tuple[Int8[Array, "*stack I O"] | UInt8[Array, "*stack half O"], Float[Array, "*stack b O"]]:
    """Round a matrix to the levels of its blocks.

    Args:
        kernel: the matrix, or a stack of matrices.
        quantization: ``int8`` or ``nf4``.

    Returns:
        The codes, int8 ``[I O]`` or packed uint8 ``[I/2 O]``, and the scales ``[I/b O]`` for blocks
        of ``b`` inputs, in float32 at least.

    Raises:
        ValueError: if the number of inputs is odd.

    Examples:
        >>> codes, scale = quantize(jnp.array([[1.0], [-4.0]]), "int8")
        >>> codes.tolist(), scale.tolist()
        ([[32], [-127]], [[4.0]])
    """
    *stack, n_in, n_out = kernel.shape
    size = block_size(n_in)
    wide = kernel.astype(accumulation_dtype(kernel.dtype)).reshape(*stack, -1, size, n_out)
    scale = jnp.max(jnp.abs(wide), axis=-2)
    unit = wide / jnp.where(scale > 0, scale, 1)[..., None, :]
    if quantization == "int8":
        return jnp.round(unit * INT8_LEVELS).astype(jnp.int8).reshape(kernel.shape), scale
    codes = jnp.zeros(unit.shape, jnp.uint8)
    for low, high in pairwise(NF4_LEVELS):
        codes += (unit > (low + high) / 2).astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=-2)
    return (low | high << jnp.uint8(4)).reshape(*stack, n_in // 2, n_out), scale


def dequantize(
    codes: Int8[Array, "*stack I O"] | UInt8[Array, "*stack half O"],
    scale: Float[Array, "*stack b O"],
) -> Float[Array, "*stack inputs O"]:
    """Return the matrix that codes and scales stand for.

    Args:
        codes: int8 codes, or packed ``nf4`` codes in uint8.
        scale: scales of the blocks.

    Returns:
        The matrix ``[I O]``, in the dtype of the scales.

    Examples:
        >>> dequantize(jnp.array([[127], [0]], jnp.int8), jnp.array([[4.0]])).tolist()
        [[4.0], [0.0]]
    """
    *stack, n_blocks, n_out = scale.shape
    blocks = codes.reshape(*stack, n_blocks, -1, n_out)
    if codes.dtype == jnp.int8:
        unit = blocks.astype(scale.dtype) / INT8_LEVELS
    else:
        halves = blocks & jnp.uint8(15), blocks >> jnp.uint8(4)
        unit = _nf4_levels(jnp.concatenate(halves, axis=-2), scale)
    return (unit * scale[..., None, :]).reshape(*stack, -1, n_out)


def _nf4_levels(codes: Array, scale: Array) -> Array:
    """Return the level of each code, by a tree of selections: gathers are slow on accelerators."""
    levels = [jnp.asarray(level, scale.dtype) for level in NF4_LEVELS]
    for bit in range(4):
        is_set = (codes >> jnp.uint8(bit)) & jnp.uint8(1) == 1
        pairs = zip(levels[::2], levels[1::2], strict=True)
        levels = [jnp.where(is_set, high, low) for low, high in pairs]
    return levels[0]


class QuantizedParam(nnx.Variable[Array]):
    """Codes or scales of a quantized matrix; they are not trained."""


class QuantizedKernel(nnx.Module):
    """A matrix, or a stack of matrices, in 8 or 4 bits; indexing it returns floating numbers.

    It takes the place of the parameter ``kernel`` of a projection.

    Args:
        kernel: the matrices.
        quantization: ``int8`` or ``nf4``.

    Attributes:
        codes: see :func:`quantize`.
        scale: see :func:`quantize`.

    Examples:
        >>> kernel = QuantizedKernel(jnp.array([[1.0], [-4.0]]), "int8")
        >>> kernel.shape, kernel[...].round(2).tolist()
        ((2, 1), [[1.01], [-4.0]])
    """

    def __init__(self, kernel: Float[Array, "*stack I O"], quantization: QuantizationName) -> None:
        """Quantize the matrices."""
        codes, scale = quantize(kernel, quantization)
        self.codes: QuantizedParam = QuantizedParam(codes)
        self.scale: QuantizedParam = QuantizedParam(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices that the codes stand for."""
        return kernel_shape(self.codes[...])

    def __getitem__(self, index: object) -> Float[Array, "*stack I O"]:
        """Return the matrices, or those of some layers, in the dtype of the scales."""
        # Without the barrier XLA may dequantize all layers at once and keep them.
        codes, scale = jax.lax.optimization_barrier((self.codes[index], self.scale[index]))
        return dequantize(codes, scale)


def kernel_shape(codes: Any) -> tuple[int, ...]:
    """Return the shape of the matrices that codes stand for.

    Args:
        codes: the codes, or an object with their ``shape`` and ``dtype``.

    Returns:
        The shape ``[..., I, O]``.

    Examples:
        >>> kernel_shape(jnp.zeros((2, 3), jnp.uint8))
        (4, 3)
    """
    *stack, rows, n_out = codes.shape
    return (*stack, rows if codes.dtype == jnp.int8 else 2 * rows, n_out)
