"""Tensors of a model folder from the parameters of a decoder, with adapters merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.models.decoder import Decoder
from llm.models.lora import add_product
from llm.models.projections import Adapter, Projection, TableAdapter
from llm.models.quantization import QuantizedKernel, QuantizedParam, kernel_shape
from llm.parallel.mesh import on_host

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
        decoder: the model. If it is on several processes, all must read the same tensors, in the
            same order.
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
        parameter = getattr(leaf, mapping.path[-1])
        values = read_base(name, mapping, parameter)
        if values is None:
            # A tensor is gathered on the host before it is merged, so that every mesh has its bits.
            values = on_host(parameter[index or ...])
        before, adapter = values, _adapter_of(decoder, leaf, mapping)
        if adapter is not None:
            parts = [on_host(each[index or ...]) for each in (adapter.a, adapter.b, adapter.scale)]
            values = np.asarray(add_product(*map(jnp.asarray, (before, *parts))))
        rounded = round_tensor(name, values, dtype)
        if counter is not None and adapter is not None:
            counter.add(before, values, rounded)
        return [values, rounded]

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


def _adapter_of(
    decoder: Decoder, module: Any, mapping: TensorMapping
) -> Adapter | TableAdapter | None:
    """Return the adapter of a parameter; None if it has none."""
    if isinstance(module, Projection):
        return module.adapter if mapping.path[-1] == "kernel" else None
    return getattr(decoder, f"{mapping.path[0]}_adapter", None)
