"""Safetensors files of a model folder: reading tensors or slices of them, and writing.

Pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm.data.model_folder import model_file
from rpo_io.staging import origin_of

from .remote_tensors import RemoteTensors
from .weight_files import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    locate_tensors,
    read_index,
    unread_files,
)

DIGEST_PREFIX = "sha256."
"""Prefix of a tensor's name in the metadata, where this package stores the tensor's digest."""
FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsReader:
    """A reader of the tensors of a folder, in one file or in several with an index.

    Files are read, not memory-mapped, so that only the current tensor is in memory.

    Args:
        folder: folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        name: name of the only file to read; None for the files of a model.

    Raises:
        ValueError: if there are no such files, a file is damaged, or the index and the files
            contradict each other.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Open the files."""
        self.folder: Path = folder
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}
        self._paths: dict[str, Path] = {}
        try:
            index = read_index(folder) if name is None else None
            single = model_file(folder, name or SAFE_WEIGHTS_NAME)
            for path in [single] if index is None else sorted(set(index.values())):
                self._files[path] = self._stack.enter_context(_open(path))
            contents = {path: set(file.keys()) for path, file in self._files.items()}
            self._paths |= locate_tensors(index, contents, folder)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> SafetensorsReader:
        """Return the reader; leaving the context closes the files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._stack.close()

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return set(self._paths)

    def unread_files(self) -> list[str]:
        """Return the names of weight files of the folder that are not read.

        Examples:
            >>> SafetensorsReader(Path("model")).unread_files()  # doctest: +SKIP
            []
        """
        return unread_files(self.folder, set(self._files))

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as the format writes it.

        Args:
            name: name of the tensor.

        Returns:
            The name, such as ``BF16``.
        """
        return self._files[self._paths[name]].get_slice(name).get_dtype()

    def check_dtype(self, name: str) -> None:
        """Refuse a tensor that is not stored in one of :data:`FLOAT_DTYPES`.

        Args:
            name: name of the tensor.

        Raises:
            ValueError: if it has another dtype.
        """
        if (dtype := self.dtype(name)) not in FLOAT_DTYPES:
            names = ", ".join(FLOAT_DTYPES)
            raise ValueError(
                f"{self._paths[name]}: tensor {name} must be of type {names}, got {dtype}"
            )

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape, without reading it.

        Args:
            name: name of the tensor.
            shape: shape that it must have.

        Raises:
            ValueError: if it has another shape.
        """
        path = self._paths[name]
        found = self._files[path].get_slice(name).get_shape()
        if tuple(found) != shape:
            raise ValueError(f"{path}: tensor {name} must have shape {list(shape)}, got {found}")

    def file(self, name: str) -> Path:
        """Return the path of the file that holds a tensor.

        Args:
            name: name of the tensor.

        Returns:
            The path.
        """
        return self._paths[name]

    def read(
        self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] | None = None
    ) -> np.ndarray:
        """Read a tensor, or a slice of it.

        Args:
            name: name of the tensor.
            shape: shape that the whole tensor must have.
            part: one slice per axis; None for the whole tensor.

        Returns:
            The values, in the dtype of the file.

        Raises:
            ValueError: if the shape differs, the dtype is not floating point, a value is not
                finite, or a whole tensor does not have the digest that the file stores for it.
        """
        self.check_shape(name, shape)
        self.check_dtype(name)
        path = self._paths[name]
        stored = self._files[path].get_slice(name)
        tensor = self._files[path].get_tensor(name) if part is None else stored[part]
        if not np.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name} holds NaN or infinite numbers")
        digest = (self._files[path].metadata() or {}).get(DIGEST_PREFIX + name)
        if digest is not None and tensor.shape == shape and digest != _digest(tensor):
            raise ValueError(f"{path} is damaged: tensor {name} is not the one that was written")
        return tensor

    def read_unchecked(self, name: str) -> np.ndarray:
        """Read a whole tensor of any shape and dtype, to copy it.

        Args:
            name: name of the tensor.

        Returns:
            The values, in the dtype of the file.
        """
        return self._files[self._paths[name]].get_tensor(name)


def write_safetensors(
    folder: Path,
    sizes: dict[str, int],
    read: Callable[[str], np.ndarray],
    *,
    max_file_bytes: int,
) -> None:
    """Write tensors to one safetensors file, or to several with an index.

    Of several processes, which must all call this function, each writes some of the files.

    Args:
        folder: an existing folder that all processes see.
        sizes: size of every tensor in bytes, in the order in which they fill the files.
        read: returns a tensor by name, in all processes; the tensors of one file are in the memory
            of the process that writes it.
        max_file_bytes: largest size of the tensors in one file; a larger tensor gets a file for
            itself.
    """
    groups = _groups(sizes, max_file_bytes)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = SAFE_WEIGHTS_NAME
        if len(groups) > 1:
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        is_ours = (number - 1) % jax.process_count() == jax.process_index()
        tensors: dict[str, np.ndarray] = {}
        for key in group:
            tensor = read(key)
            if is_ours:
                tensors[key] = tensor
        if is_ours:
            write_safetensors_file(folder / name, tensors)
        weight_map |= dict.fromkeys(group, name)
    if len(groups) > 1 and jax.process_index() == 0:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def write_safetensors_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors and their digests to one file.

    Args:
        path: the file.
        tensors: the tensors by name.

    Examples:
        >>> write_safetensors_file(Path("model.safetensors"), {"a": np.ones(2)})  # doctest: +SKIP
    """
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # The format has no checksums; unknown metadata are ignored by other readers.
    digests = {DIGEST_PREFIX + name: _digest(tensor) for name, tensor in contiguous.items()}
    save_file(contiguous, path, metadata={"format": "pt"} | digests)
    _sort_metadata(path)


def _digest(tensor: np.ndarray) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}\n".encode())
    digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a file's header, whose order otherwise differs between processes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def _open(path: Path) -> Any:
    origin = origin_of(path)
    try:
        if origin is not None:
            return RemoteTensors(origin)
        return safe_open(path, framework="np", backend="pread")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is broken: {error}") from error


def _groups(sizes: dict[str, int], max_file_bytes: int) -> list[list[str]]:
    """Distribute tensors, in order, over files of at most ``max_file_bytes``."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups
