"""Tensors of a safetensors file in an object store, read by range: only the bytes of a slice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from rpo_io.object_stores import RemoteObject, read_chunks, read_range
from rpo_io.remote_errors import StoreError

MAX_HEADER_BYTES = 100_000_000
"""Largest header, as in the safetensors library."""
BLOCK_BYTES = 64 * 2**20
"""Bytes that are read together; a slice takes twice this memory besides its own."""
_DTYPES: dict[str, np.dtype[Any]] = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}


class StoredTensor(NamedTuple):
    """A tensor in a file, as the header describes it.

    Attributes:
        dtype: name of the dtype, such as ``BF16``.
        shape: size of every axis.
        start: index of its first byte in the file.
        stop: index of the byte after its last one.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class RemoteTensors:
    """A safetensors file in an object store, with the methods of ``safetensors.safe_open``.

    Args:
        source: the file at one moment; if it is replaced later, reads are refused.

    Raises:
        SafetensorError: if the header is damaged, or does not fit the size of the file.
        ValueError: if the file cannot be read.
    """

    def __init__(self, source: RemoteObject) -> None:
        """Read the header."""
        self.source = source
        self._tensors, self._metadata = _read_header(source)

    def __enter__(self) -> RemoteTensors:
        """Return the file; nothing is open between two reads."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing."""

    def keys(self) -> list[str]:
        """Return the names of the tensors, sorted."""
        return sorted(self._tensors)

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata of the file; None for none."""
        return self._metadata

    def get_slice(self, name: str) -> RemoteSlice:
        """Return a tensor that is read when it is indexed.

        Args:
            name: name of the tensor.

        Raises:
            SafetensorError: if there is no such tensor.
        """
        if name not in self._tensors:
            raise SafetensorError(f"File does not contain tensor {name}")
        return RemoteSlice(self.source, self._tensors[name])

    def get_tensor(self, name: str) -> np.ndarray:
        """Read a whole tensor.

        Args:
            name: name of the tensor.

        Raises:
            SafetensorError: if there is no such tensor, or its dtype is unknown.
            ValueError: if it cannot be read.
        """
        stored = self.get_slice(name)
        return stored[tuple(slice(None) for _ in stored.get_shape())]


class RemoteSlice:
    """A tensor of :class:`RemoteTensors` that is read when it is indexed by slices.

    Args:
        source: the file.
        tensor: dtype, shape and bytes of the tensor.
    """

    def __init__(self, source: RemoteObject, tensor: StoredTensor) -> None:
        """Read nothing yet."""
        self._source, self._tensor = source, tensor

    def get_dtype(self) -> str:
        """Return the dtype, as the format writes it."""
        return self._tensor.dtype

    def get_shape(self) -> list[int]:
        """Return the size of every axis."""
        return list(self._tensor.shape)

    def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
        """Read a slice, in blocks of rows of the first axis.

        Args:
            part: one slice with step 1 per axis.

        Returns:
            The values, in the dtype of the file.

        Raises:
            SafetensorError: if the dtype is unknown.
            ValueError: if the file was replaced, or cannot be read.
        """
        tensor = self._tensor
        if tensor.dtype not in _DTYPES:
            raise SafetensorError(f"the dtype {tensor.dtype} is not supported")
        dtype = _DTYPES[tensor.dtype].newbyteorder("<")
        if not tensor.shape:
            return np.frombuffer(self._read(0, dtype.itemsize), dtype).reshape(())
        rows = range(*part[0].indices(tensor.shape[0]))
        inner = tensor.shape[1:]
        row_bytes = math.prod(inner) * dtype.itemsize
        sizes = (len(range(*each.indices(n))) for each, n in zip(part[1:], inner, strict=True))
        result = np.empty((len(rows), *sizes), _DTYPES[tensor.dtype])
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            content = self._read(block[0] * row_bytes, (block[-1] + 1) * row_bytes)
            values = np.frombuffer(content, dtype).reshape(len(block), *inner)
            result[first : first + step] = values[(slice(None), *part[1:])]
        return result

    def _read(self, start: int, stop: int) -> bytes:
        base = self._tensor.start
        return b"".join(read_chunks(self._source, base + start, base + stop))


def _read_header(source: RemoteObject) -> tuple[dict[str, StoredTensor], dict[str, str] | None]:
    """Read and check the header: tensors fill the rest of the file without gaps."""
    if source.size < 8:
        raise SafetensorError("Error while deserializing header: header too small")
    length = int.from_bytes(read_range(source, 0, 8), "little")
    if length > min(MAX_HEADER_BYTES, source.size - 8):
        raise SafetensorError("Error while deserializing header: header too large")
    try:
        header = json.loads(read_range(source, 8, 8 + length))
        metadata = header.pop("__metadata__", None)
        tensors = dict(_tensors_of(header, 8 + length))
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SafetensorError(f"Error while deserializing header: {error}") from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start != end or tensor.stop < end:
            raise SafetensorError(f"Error while deserializing header: invalid offset of {name}")
        end = tensor.stop
    if end != source.size:
        raise SafetensorError("Error while deserializing header: incomplete or surplus content")
    return tensors, metadata


def _tensors_of(header: dict[str, Any], base: int) -> Iterator[tuple[str, StoredTensor]]:
    for name, fields in header.items():
        dtype, shape = fields["dtype"], tuple(map(int, fields["shape"]))
        start, stop = map(int, fields["data_offsets"])
        if min(start, stop, *shape, 0) < 0:
            raise ValueError(f"tensor {name} has negative numbers")
        if dtype in _DTYPES and stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"tensor {name} has another size than its shape")
        yield name, StoredTensor(dtype, shape, base + start, base + stop)
