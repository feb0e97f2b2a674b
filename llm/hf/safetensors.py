"""Safetensors files of a folder, read one tensor at a time and written in parts. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm.data.model_folder import model_file, read_json_object

SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
DIGEST = "sha256."
"""Before the name of a tensor, in the metadata of the files that are written here."""
FLOATING = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsReader:
    """The tensors of a folder, in one file or in several with an index.

    Files are read, not mapped, so that memory holds the tensor at hand and no more.

    Args:
        folder: holds ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        ValueError: there are no such files, or they are broken.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files."""
        self._closing = ExitStack()
        self._files: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        try:
            for path in _files(folder):
                file = self._closing.enter_context(_open(path))
                self._files[path] = file
                self._where |= dict.fromkeys(file.keys(), path)
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> SafetensorsReader:
        """Use as a context, which closes the files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._closing.close()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def file(self, name: str) -> Path:
        """The file that a tensor is in."""
        return self._where[name]

    def read(
        self, name: str, shape: tuple[int, ...], part: tuple[slice, ...] | None = None
    ) -> np.ndarray:
        """Read one tensor, or a part of it.

        Args:
            name: of the tensor.
            shape: that it must have, the whole.
            part: slices of it; None for the whole.

        Returns:
            Of the file's dtype.

        Raises:
            ValueError: another shape, not floating, NaN or infinite numbers in it, or, of a whole
                tensor whose file has its digest, not the values that were written.
        """
        path = self._where[name]
        stored = self._files[path].get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise ValueError(
                f"{path}: tensor {name} must have shape {list(shape)}, got {stored.get_shape()}"
            )
        if stored.get_dtype() not in FLOATING:
            raise ValueError(
                f"{path}: tensor {name} must be of type {', '.join(FLOATING)}, got "
                f"{stored.get_dtype()}"
            )
        tensor = self._files[path].get_tensor(name) if part is None else stored[part]
        if not np.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name} holds NaN or infinite numbers")
        said = (self._files[path].metadata() or {}).get(DIGEST + name)
        if said is not None and tensor.shape == shape and said != _digest(tensor):
            raise ValueError(f"{path} is damaged: tensor {name} is not the one that was written")
        return tensor


def write_safetensors(
    folder: Path,
    sizes: dict[str, int],
    read: Callable[[str], np.ndarray],
    *,
    max_file_bytes: int,
) -> None:
    """Write tensors to one file, or to several with an index if they are too large for one.

    Args:
        folder: exists.
        sizes: bytes of every tensor, in the order that they are distributed over the files.
        read: gives a tensor by name; those of one file are in memory together.
        max_file_bytes: most bytes of tensors in a file, except where one alone has more.
    """
    groups = _groups(sizes, max_file_bytes)
    where: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = SAFE_WEIGHTS_NAME
        if len(groups) > 1:
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {key: np.ascontiguousarray(read(key)) for key in group}
        # The format has no checksum, but room for what its readers do not know.
        digests = {DIGEST + key: _digest(tensor) for key, tensor in tensors.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"} | digests)
        _sort_metadata(folder / name)
        where |= dict.fromkeys(group, name)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(where.items())),
        }
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def _digest(tensor: np.ndarray) -> str:
    total = hashlib.sha256(f"{tensor.dtype} {tensor.shape}\n".encode())
    total.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _sort_metadata(path: Path) -> None:
    """The library writes metadata in an order that differs from process to process."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def _files(folder: Path) -> Iterable[Path]:
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        listed = read_json_object(folder, SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise ValueError(
                f"{folder / SAFE_WEIGHTS_INDEX_NAME}: `weight_map` must map tensors to file names"
            )
        # Only names of the folder itself: an index must not lead elsewhere.
        return [
            model_file(folder, name) for name in sorted({Path(v).name for v in listed.values()})
        ]
    if not (folder / SAFE_WEIGHTS_NAME).exists():
        raise ValueError(
            f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; other formats (pickled .bin files) are "
            "never read: convert them to safetensors"
        )
    return [model_file(folder, SAFE_WEIGHTS_NAME)]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np", backend="pread")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is broken: {error}") from error


def _groups(sizes: dict[str, int], max_file_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups
