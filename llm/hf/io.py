"""Models from and to Hugging Face folders: ``config.json`` and safetensors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike

from llm.data.model_folder import (
    CONFIG_NAME,
    TOKENIZER_FILES,
    model_file,
    read_json_object,
)
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder, LayerLoop, Remat
from llm.models.lora import merged_kernel

from .config import from_hf_config, to_hf_config
from .names import EMBEDDING_NAME, HEAD_NAME, TensorMapping, tensor_mappings
from .safetensors import SafetensorsReader, write_safetensors

MAX_FILE_BYTES = 5 * 10**9
DERIVED = "rotary_emb.inv_freq"  # old files hold it; it follows from the configuration


def load_model(
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    layer_loop: LayerLoop = "scan",
) -> Decoder:
    """Load a decoder onto one device.

    Args:
        folder: local folder with ``config.json`` and safetensors files;
            :func:`llm.data.model_folder.resolve_model_folder` finds the one of a hub name.
        dtype: to compute in.
        param_dtype: of the parameters, whatever the files hold.
        remat: see :class:`llm.models.decoder.Decoder`.
        layer_loop: see :class:`llm.models.decoder.Decoder`.

    Returns:
        The decoder.

    Raises:
        ValueError: no such model, an unknown architecture, or a tensor that is missing, unknown,
            of the wrong shape or not finite; nothing is left out or made up.
    """
    folder = Path(folder)
    architecture = read_architecture(folder)

    def create() -> Decoder:
        return Decoder(
            architecture,
            rngs=nnx.Rngs(0),
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            layer_loop=layer_loop,
        )

    graphdef, abstract = nnx.split(nnx.eval_shape(create))
    leaves = dict(nnx.to_flat_state(abstract))
    for path, parameter in read_parameters(folder, architecture, leaves):
        leaves[path] = leaves[path].replace(parameter)
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def read_parameters(
    folder: Path,
    architecture: Architecture,
    shapes: Mapping[tuple[Any, ...], Any],
    where: Mapping[tuple[Any, ...], Sharding] | None = None,
) -> Iterator[tuple[tuple[Any, ...], jax.Array]]:
    """Read the parameters of a decoder, one at a time: hardly more than they are in memory.

    On a mesh a process reads what its own devices hold and no more, each share by itself, so that
    no parameter is ever whole, neither on a device nor on a host.

    Args:
        folder: of the model.
        architecture: that ``config.json`` there describes.
        shapes: anything with ``shape`` and ``dtype``, by path.
        where: shardings by path; None for one device.

    Yields:
        The path of a parameter, and its values.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape or not finite.
    """
    with SafetensorsReader(folder) as files:
        _check_names(folder, files, architecture)
        # The largest first: what is in memory twice, while it is stacked, is then never on top of
        # much else.
        for entry in sorted(
            tensor_mappings(architecture), key=lambda e: -np.prod(shapes[e.path].shape)
        ):
            leaf = shapes[entry.path]
            share: Any = partial(_read_share, files, entry, leaf.shape, np.dtype(leaf.dtype))
            if where is None:
                parameter = jnp.asarray(share(tuple(slice(size) for size in leaf.shape)))
            else:
                parameter = jax.make_array_from_callback(leaf.shape, where[entry.path], share)
            # Waiting for the copy lets go of the host's values before the next ones are read.
            yield entry.path, jax.block_until_ready(parameter)


def export_model(
    decoder: Decoder,
    folder: str | os.PathLike[str],
    *,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a folder that ``transformers`` loads; adapters are merged into the weights.

    Args:
        decoder: stays as it is.
        folder: must not exist, or be empty; it appears when it is complete.
        tokenizer_folder: folder whose tokenizer and generation files are copied; None for none.
        dtype: of the tensors; None for that of the parameters.
        max_file_bytes: larger models are split over several files.

    Raises:
        ValueError: the folder is not empty, or the architecture has no Hugging Face name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not an empty folder: choose another one")
    wanted = np.dtype(decoder.embedding[...].dtype if dtype is None else dtype)
    config = to_hf_config(decoder.architecture) | {"dtype": wanted.name}
    source = None if tokenizer_folder is None else Path(tokenizer_folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        (unfinished / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sizes, tensors = _tensors(decoder, wanted)
        write_safetensors(unfinished, sizes, tensors, max_file_bytes=max_file_bytes)
        for name in TOKENIZER_FILES:
            if source is not None and (source / name).exists():
                shutil.copyfile(model_file(source, name), unfinished / name)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture of a model in a folder.

    Args:
        folder: holds ``config.json``.

    Returns:
        The architecture.

    Raises:
        ValueError: the file is missing or broken, or the architecture unknown; the file is named.
    """
    config = read_json_object(folder, CONFIG_NAME)
    try:
        return from_hf_config(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error


def _check_names(folder: Path, files: SafetensorsReader, architecture: Architecture) -> None:
    wanted = {
        name
        for e in tensor_mappings(architecture)
        for name in e.names(architecture.num_hidden_layers)
    }
    missing = wanted - files.names()
    if missing:
        raise ValueError(
            f"{folder}: tensor {min(missing)} is missing ({len(missing)} of {len(wanted)} are)"
        )
    extra = {name for name in files.names() - wanted if not name.endswith(DERIVED)}
    if architecture.tie_word_embeddings and HEAD_NAME in extra:
        _check_tied(files, architecture)
        extra.remove(HEAD_NAME)
    if extra:
        name = min(extra)
        raise ValueError(
            f"{files.file(name)}: tensor {name} has no place in this architecture "
            f"({len(extra)} such tensors)"
        )


def _check_tied(files: SafetensorsReader, architecture: Architecture) -> None:
    """A tied model's file may repeat the embedding as the head, but not contradict it."""
    shape = (architecture.vocab_size, architecture.hidden_size)
    if not np.array_equal(files.read(HEAD_NAME, shape), files.read(EMBEDDING_NAME, shape)):
        raise ValueError(
            f"{files.file(HEAD_NAME)}: tensor {HEAD_NAME} differs from {EMBEDDING_NAME}, but the "
            "configuration has `tie_word_embeddings` true"
        )


def _read_share(
    files: SafetensorsReader,
    entry: TensorMapping,
    shape: tuple[int, ...],
    dtype: np.dtype,
    share: tuple[slice, ...],
) -> np.ndarray:
    """A share of a parameter, from the parts of the tensors that it is made of."""
    layers, within = (share[0], share[1:]) if entry.stacked else (slice(1), share)
    whole = shape[1:] if entry.stacked else shape
    theirs = (whole[::-1], within[::-1]) if entry.transposed else (whole, within)
    num_hidden_layers = shape[0] if entry.stacked else 1
    sizes = [len(range(*part.indices(size))) for part, size in zip(within, whole, strict=True)]
    names = entry.names(num_hidden_layers)[layers]
    stack = np.empty((len(names), *sizes), dtype)
    for part, name in zip(stack, names, strict=True):
        tensor = files.read(name, *theirs)
        with np.errstate(over="ignore"):  # said below, by name
            part[...] = tensor.T if entry.transposed else tensor
        if not np.isfinite(part).all():
            raise ValueError(f"{files.file(name)}: tensor {name} is too large for {dtype.name}")
    return stack if entry.stacked else stack[0]


def _tensors(decoder: Decoder, dtype: np.dtype) -> tuple[dict[str, int], Any]:
    """Sizes of all tensors in bytes, and a function that makes one."""
    num_hidden_layers = decoder.architecture.num_hidden_layers
    where = {
        name: (entry, layer)
        for entry in tensor_mappings(decoder.architecture)
        for layer, name in enumerate(entry.names(num_hidden_layers))
    }

    def read(name: str) -> np.ndarray:
        entry, layer = where[name]
        leaf: Any = decoder
        for step in entry.path[:-1]:
            leaf = getattr(leaf, step)
        if entry.transposed:
            return np.asarray(merged_kernel(leaf, layer)).T.astype(dtype)
        leaf = getattr(leaf, entry.path[-1])[...]
        return np.asarray(leaf[layer] if entry.stacked else leaf).astype(dtype)

    shapes = {p: leaf.shape for p, leaf in nnx.to_flat_state(nnx.state(decoder))}
    sizes = {
        name: dtype.itemsize
        * int(np.prod(shapes[entry.path][1:] if entry.stacked else shapes[entry.path]))
        for name, (entry, _) in sorted(where.items())
    }
    return sizes, read
