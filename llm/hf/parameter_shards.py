"""Shards of parameters, read from slices of the tensors of a model folder.

A quantized parameter is quantized while it is read, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.models.quantization import block_size, kernel_shape, quantize

from .safetensors import SafetensorsReader
from .tensor_mapping import TensorMapping

ShardReader = Callable[[Any], np.ndarray]
"""Returns the shard of a parameter at some slices."""


def shard_readers(
    files: SafetensorsReader,
    mappings: Sequence[TensorMapping],
    stored: Mapping[str, str],
    shapes: Mapping[tuple[Any, ...], Any],
) -> dict[tuple[Any, ...], ShardReader]:
    """Return functions that read shards of the parameters of a model folder.

    Args:
        files: the tensors.
        mappings: tensors of each parameter.
        stored: stored name of each tensor.
        shapes: objects with ``shape`` and ``dtype``, by parameter path. Those of a quantized
            parameter have the paths of its codes and scales.

    Returns:
        The functions by path.

    Examples:
        >>> shard_readers(files, mappings, stored, shapes)  # doctest: +SKIP
    """
    readers: dict[tuple[Any, ...], ShardReader] = {}
    for mapping in mappings:
        path = mapping.path
        if path in shapes:
            shape, dtype = shapes[path].shape, np.dtype(shapes[path].dtype)
            readers[path] = partial(_read_shard, files, mapping, stored, shape, dtype)
            continue
        codes, scale = (shapes[(*path, part)] for part in ("codes", "scale"))
        shape = kernel_shape(codes)
        read = partial(_read_shard, files, mapping, stored, shape, np.dtype(scale.dtype))
        for name, part in (("codes", codes), ("scale", scale)):
            readers[(*path, name)] = partial(quantized_shard, read, shape, part, codes.dtype)
    return readers


def quantized_shard(
    read: ShardReader,
    shape: tuple[int, ...],
    part: Any,
    codes_dtype: Any,
    shard: tuple[slice, ...],
) -> np.ndarray:
    """Read a shard of the codes, or of the scales, of a stack of matrices.

    The matrices of a layer are read and quantized by themselves, so that the host never holds more
    than one layer of a parameter in floating point.

    Args:
        read: returns a shard of the matrices ``[layers, ..., I, O]``.
        shape: shape of the matrices.
        part: shape and dtype of the codes or of the scales.
        codes_dtype: dtype of the codes: int8, or uint8 for packed ``nf4``.
        shard: slices of ``part``.

    Returns:
        The shard.

    Examples:
        >>> weights = np.array([[[1.0], [-4.0]]], np.float32)
        >>> scale = jax.ShapeDtypeStruct((1, 1, 1), np.float32)
        >>> whole = (slice(None),) * 3
        >>> quantized_shard(weights.__getitem__, (1, 2, 1), scale, np.int8, whole).tolist()
        [[[4.0]]]
    """
    kind = "int8" if codes_dtype == jnp.int8 else "nf4"
    is_codes = part.dtype == codes_dtype
    n_inputs = shape[-2]
    block = block_size(n_inputs)
    rows_per_block = block * part.shape[-2] // n_inputs
    ranges = [range(*each.indices(n)) for each, n in zip(shard, part.shape, strict=True)]
    rows, columns = ranges[-2:]
    # A shard may begin within a block: whole blocks are read and the rows are cut out.
    first, last = rows.start // rows_per_block, -(-rows.stop // rows_per_block)
    inputs = slice(first * block, last * block)
    kept = slice(rows.start - first * rows_per_block, rows.stop - first * rows_per_block)
    quantized = np.empty([len(each) for each in ranges], part.dtype)
    with jax.default_device(_host()):
        for index in np.ndindex(quantized.shape[:-2]):
            layer = tuple(slice(r[i], r[i] + 1) for r, i in zip(ranges, index, strict=False))
            kernel = read((*layer, inputs, slice(columns.start, columns.stop)))
            codes, scale = _quantize(jnp.asarray(kernel), kind)
            values = np.asarray(codes if is_codes else scale)
            quantized[index] = values.reshape(values.shape[-2:])[kept]
    return quantized


def _read_shard(
    files: SafetensorsReader,
    mapping: TensorMapping,
    stored: Mapping[str, str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    shard: tuple[slice, ...],
) -> np.ndarray:
    """Read one shard of a parameter of the given full shape, from slices of its tensors."""
    n_layers = shape[0] if mapping.stacked else 1
    n_axes = len(mapping.stack_shape(n_layers))
    within, tensor_shape = shard[n_axes:], shape[n_axes:]
    tensor_slices = mapping.tensor_slices(tensor_shape, within)
    all_names = np.array(mapping.names(n_layers)).reshape(shape[:n_axes])
    names = np.asarray(all_names[shard[:n_axes]])
    sizes = [len(range(*part.indices(n))) for part, n in zip(within, tensor_shape, strict=True)]
    stack = np.empty((*names.shape, *sizes), dtype)
    for index in np.ndindex(names.shape):
        name = stored[str(names[index])]
        tensor = files.read(name, *tensor_slices)
        with np.errstate(over="ignore"):  # an overflow is reported below, with the tensor's name
            stack[index] = mapping.swap(tensor)
        if dtype.itemsize < tensor.dtype.itemsize and not np.isfinite(stack[index]).all():
            raise ValueError(f"{files.file(name)}: tensor {name} is too large for {dtype.name}")
    return stack


_quantize = jax.jit(quantize, static_argnums=1)


def _host() -> Any:
    """Return the CPU, or the default device where JAX has no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
