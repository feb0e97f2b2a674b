"""Tensors of a model folder from the parameters of a decoder, with adapters merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from llm.models.decoder import Decoder
from llm.models.lora import merged_kernel
from llm.models.projections import Projection
from llm.models.quantization import QuantizedKernel, QuantizedParam, kernel_shape

from .merging import BaseTensors, MergeCounter, round_tensor
from .names import tensor_mappings
from .tensor_mapping import TensorMapping


def exported_tensors(
    decoder: Decoder,
    dtype: np.dtype,
    counter: MergeCounter | None,
    base: BaseTensors | None,
    unquantized: BaseTensors | None = None,
) -> tuple[dict[str, int], Callable[[str], np.ndarray]]:
    """Return the sizes of all tensors of an export, and a function that returns a tensor by name.

    Args:
        decoder: the model.
        dtype: dtype of the tensors.
        counter: counts what rounding changes; None for no counts.
        base: tensors before training; None if they are not counted.
        unquantized: tensors of the base model, to which the adapters of quantized projections are
            added; None adds them to the quantized weights.

    Returns:
        The sizes in bytes, by name in the order of names, and the function.
    """
    n_layers = decoder.architecture.num_hidden_layers
    sources: dict[str, list[tuple[TensorMapping, tuple[int, ...]]]] = {}
    for mapping in tensor_mappings(decoder.architecture):
        indices = np.ndindex(mapping.stack_shape(n_layers))
        for index, name in zip(indices, mapping.names(n_layers), strict=True):
            sources.setdefault(name, []).append((mapping, index))

    def read_base(name: str, mapping: TensorMapping, parameter: Any) -> np.ndarray | None:
        """Return the weights of the base model that a quantized matrix was made from."""
        if unquantized is None or not isinstance(parameter, QuantizedKernel):
            return None
        shape = parameter.shape[len(mapping.stack_shape(n_layers)) :]
        shape, slices = mapping.tensor_slices(shape, tuple(map(slice, shape)))
        tensor = unquantized(name, shape)
        return None if tensor is None else mapping.swap(tensor[slices])

    def read_part(name: str, mapping: TensorMapping, index: tuple[int, ...]) -> list[np.ndarray]:
        """Return the values of a parameter, exact and rounded."""
        leaf: Any = decoder
        for key in mapping.path[:-1]:
            leaf = getattr(leaf, key)
        kernel = read_base(name, mapping, getattr(leaf, mapping.path[-1]))
        if not (isinstance(leaf, Projection) and mapping.path[-1] == "kernel"):
            values = before = np.asarray(getattr(leaf, mapping.path[-1])[index or ...])
            if kernel is not None:  # experts, which have no adapter
                values = before = kernel
            if getattr(decoder, f"{mapping.path[0]}_adapter", None) is not None:
                values = np.asarray(decoder.table(mapping.path[0]))
            rounded = round_tensor(name, values, dtype)
            if counter is not None and values is not before:
                counter.add(before, values, rounded)
            return [values, rounded]
        merged = np.asarray(merged_kernel(leaf, *index, kernel=kernel))
        rounded = round_tensor(name, merged, dtype)
        if counter is not None and leaf.adapter is not None:
            before = leaf.kernel[index] if kernel is None else kernel
            counter.add(np.asarray(before), merged, rounded)
        return [merged, rounded]

    def read(name: str) -> np.ndarray:
        tensors: list[np.ndarray] = []
        for mapping, index in sources[name]:
            parts = read_part(name, mapping, index)
            shape = parts[0].shape
            shape, slices = mapping.tensor_slices(shape, tuple(map(slice, shape)))
            tensors = tensors or [np.empty(shape, part.dtype) for part in parts]
            for tensor, part in zip(tensors, parts, strict=True):
                tensor[slices] = mapping.swap(part)
        values, rounded = tensors
        before = None if base is None else base(name, values.shape)
        if counter is not None and before is not None:
            counter.add(before, values, rounded)
        return rounded

    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    for path, leaf in nnx.to_flat_state(nnx.state(decoder, QuantizedParam)):
        if path[-1] == "codes":
            shapes[path[:-1]] = kernel_shape(leaf.get_value())

    def n_values(mapping: TensorMapping) -> int:
        return int(np.prod(shapes[mapping.path][len(mapping.stack_shape(n_layers)) :]))

    sizes = {
        name: dtype.itemsize * sum(n_values(mapping) for mapping, _ in parts)
        for name, parts in sorted(sources.items())
    }
    return sizes, read
