"""Loading and exporting models as Hugging Face folders: ``config.json`` and safetensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike

from llm.data.model_folder import (
    CHAT_TEMPLATE_NAME,
    CONFIG_NAME,
    MORE_TEMPLATES_NAME,
    TEMPLATE_OPTIONS_NAME,
    TOKENIZER_FILES,
    model_file,
    read_json_object,
)
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder, Remat
from llm.models.lora import has_lora
from llm.models.quantization import QuantizedParam
from llm.parallel.mesh import single_device
from rpo_io.bucket_paths import AnyPath, as_path
from rpo_io.remote_errors import StoreError

from .config import from_hf_config, to_hf_config
from .config_notes import config_notes
from .exported_tensors import exported_tensors
from .families import COMPOSITES
from .folder_kinds import check_model_folder
from .merging import ExportReport, MergeCounter, base_tensors
from .multimodal import is_image_tensor, multimodal_base
from .names import EMBEDDING_NAME, HEAD_NAME, folder_mappings, stored_names
from .parameter_shards import shard_readers
from .safetensors import FLOAT_DTYPES, SafetensorsReader, write_safetensors
from .shared_folder import shared_atomic_folder
from .tensor_mapping import TensorMapping

MAX_FILE_BYTES = 5 * 10**9
"""Default limit of the tensors in one file; larger models are split over several files."""
IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""Tensors of old files that follow from the configuration and are not read."""


def load_model(
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
) -> Decoder:
    """Load a decoder from a Hugging Face folder onto one device.

    Args:
        folder: local folder with ``config.json`` and safetensors files;
            :func:`llm.data.model_folder.resolve_model_folder` finds the one of a hub name.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters, whatever the dtype of the files.
        remat: see :class:`llm.models.decoder.Decoder`.

    Returns:
        The decoder.

    Raises:
        ValueError: if a file is missing or damaged, the architecture is unknown, or a tensor is
            missing, unexpected, of the wrong shape or not finite.
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
        )

    graphdef, abstract = nnx.split(nnx.eval_shape(create))
    leaves = dict(nnx.to_flat_state(abstract))
    devices = single_device()
    shardings = {path: devices.sharding(path) for path in leaves}
    for path, parameter in read_parameters(folder, architecture, leaves, shardings):
        leaves[path] = leaves[path].replace(parameter)
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def read_parameters(
    folder: Path,
    architecture: Architecture,
    shapes: Mapping[tuple[Any, ...], Any],
    shardings: Mapping[tuple[Any, ...], Sharding],
) -> Iterator[tuple[tuple[Any, ...], jax.Array]]:
    """Read the parameters of a decoder one at a time, to keep the peak of memory low.

    On a mesh a process reads only the shards of its own devices, one shard at a time, so that no
    parameter is ever whole on a device or on a host.

    Args:
        folder: folder of the model.
        architecture: architecture that its ``config.json`` describes.
        shapes: objects with ``shape`` and ``dtype``, by parameter path.
        shardings: shardings by parameter path.

    Yields:
        The path of a parameter and its values.

    Raises:
        ValueError: if a tensor is missing, unexpected, of the wrong shape or not finite.
    """
    with SafetensorsReader(folder) as files:
        stored, _ = _stored_tensors(folder, files, architecture)
        mappings = folder_mappings(architecture, files.names())
        readers = shard_readers(files, mappings, stored, shapes)
        # Largest first: a parameter is in memory twice while its layers are stacked.
        for path in sorted(readers, key=lambda path: -np.prod(shapes[path].shape)):
            parameter = jax.make_array_from_callback(
                shapes[path].shape, shardings[path], readers[path]
            )
            # Waiting for the copy frees the host's values before the next ones are read.
            yield path, jax.block_until_ready(parameter)


def export_model(
    decoder: Decoder,
    folder: str | os.PathLike[str] | AnyPath,
    *,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    base_folder: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> ExportReport:
    """Write a model folder that ``transformers`` loads, with adapters merged into the weights.

    Args:
        decoder: the model; it is not changed. If it is on several processes, all must call this
            function, and each writes some of the files.
        folder: folder to write, local or in a bucket. It must not exist, or be empty; it appears
            when it is complete, in a bucket with ``config.json`` last.
        tokenizer_folder: folder whose tokenizer and generation files are copied; None for none.
        chat_template: Jinja source code to write in place of the tokenizer's; None for none.
        template_options: options of the tokenizer with which the model was trained, for
            :func:`llm.text.template_options.read_template_options`; None and no options for none.
        base_folder: folder of the weights before training, to count what rounding puts back, to
            add the adapters of quantized projections to the weights before quantization, and to
            write the images of a multi-modal model back; None counts only adapters, adds them to
            the quantized weights, and writes the text model.
        dtype: dtype of the tensors; None for that of the parameters.
        max_file_bytes: largest size of the tensors in one file.

    Returns:
        Dtype and size of the tensors, and what rounding has lost of the update.

    Raises:
        ValueError: if the folder is not empty, Hugging Face has no such architecture, or a value is
            too large for ``dtype``.
    """
    folder = as_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not an empty folder: choose another one")
    a = decoder.architecture
    tensor_dtype = np.dtype(decoder.embedding[...].dtype if dtype is None else dtype)
    config = to_hf_config(a) | {"dtype": tensor_dtype.name}
    source = None if tokenizer_folder is None else Path(tokenizer_folder)
    is_narrower = tensor_dtype.itemsize < decoder.embedding[...].dtype.itemsize
    compared = Path(base_folder) if base_folder is not None and is_narrower else None
    adapted = has_lora(decoder)
    is_quantized = bool(jax.tree.leaves(nnx.state(decoder, QuantizedParam)))
    unquantized = Path(base_folder) if base_folder is not None and is_quantized else None
    with (
        shared_atomic_folder(folder, last=(CONFIG_NAME,)) as part,
        base_tensors(None if adapted else compared) as base,
        base_tensors(unquantized) as base_weights,
        multimodal_base(None if base_folder is None else Path(base_folder), a) as multimodal,
    ):
        if multimodal is not None:
            config = multimodal.config_of(tensor_dtype.name)
        if jax.process_index() == 0:
            if multimodal is not None:
                multimodal.copy_files(part)
            (part / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            copy_tokenizer_files(part, source, chat_template, template_options or {})
        counter = MergeCounter() if adapted or base is not None else None
        sizes, read = exported_tensors(decoder, tensor_dtype, counter, base, base_weights)
        if multimodal is not None:
            sizes, read = multimodal.with_images(sizes, read)
        write_safetensors(part, sizes, read, max_file_bytes=max_file_bytes)
    rounding = None if counter is None else counter.report()
    return ExportReport(tensor_dtype.name, sum(sizes.values()), rounding)


def copy_tokenizer_files(
    folder: Path,
    source: Path | None,
    chat_template: str | None,
    template_options: Mapping[str, Any],
) -> None:
    """Copy the files of a tokenizer into the folder of an exported model or adapter.

    Args:
        folder: an existing folder.
        source: folder whose tokenizer and generation files are copied; None for none.
        chat_template: see :func:`export_model`.
        template_options: see :func:`export_model`.

    Raises:
        ValueError: if a file leads out of its folder.

    Examples:
        >>> copy_tokenizer_files(Path("adapter"), Path("model"), None, {})  # doctest: +SKIP
    """
    for name in TOKENIZER_FILES:
        if source is not None and (source / name).exists():
            shutil.copyfile(model_file(source, name), folder / name)
    if template_options:
        document = json.dumps(dict(template_options), indent=2) + "\n"
        (folder / TEMPLATE_OPTIONS_NAME).write_text(document, encoding="utf-8")
    if chat_template is not None:
        (folder / CHAT_TEMPLATE_NAME).write_text(chat_template, encoding="utf-8")
    elif source is not None:
        for path in sorted((source / MORE_TEMPLATES_NAME).glob("*.jinja")):
            name = f"{MORE_TEMPLATES_NAME}/{path.name}"
            (folder / MORE_TEMPLATES_NAME).mkdir(exist_ok=True)
            shutil.copyfile(model_file(source, name), folder / name)


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture of a model folder.

    Args:
        folder: folder with ``config.json``.

    Returns:
        The architecture.

    Raises:
        ValueError: if the file is missing or damaged, or the architecture is unknown; the message
            names the file.
    """
    check_model_folder(folder)
    config = read_json_object(folder, CONFIG_NAME)
    try:
        return from_hf_config(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error


def model_notes(folder: Path) -> tuple[str, ...]:
    """Describe what a model folder holds that is not used.

    Args:
        folder: folder with ``config.json``; without weights, only that file is described.

    Returns:
        Sentences for a log; empty if everything is used.

    Raises:
        ValueError: if the configuration or the names of the tensors are refused.

    Examples:
        >>> model_notes(Path("model"))  # doctest: +SKIP
        ('config.json: keys without effect: clip_qkv',)
    """
    architecture = read_architecture(folder)
    notes = config_notes(read_json_object(folder, CONFIG_NAME))
    if next(folder.glob("*.safetensors*"), None) is None:
        return notes
    with SafetensorsReader(folder) as files:
        return (*notes, *_stored_tensors(folder, files, architecture)[1])


def _stored_tensors(
    folder: Path, files: SafetensorsReader, architecture: Architecture
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the stored name of every tensor, and notes; raise if names do not fit."""
    n_layers = architecture.num_hidden_layers
    mappings = folder_mappings(architecture, files.names())
    expected = {name for each in mappings for name in each.names(n_layers)}
    try:
        stored = stored_names(files.names(), expected | {EMBEDDING_NAME, HEAD_NAME})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    missing = {stored[name] for name in expected} - files.names()
    if missing:
        hint = ": is the head the embedding? Set `tie_word_embeddings` to true in config.json"
        raise ValueError(
            f"{folder}: tensor {min(missing)} is missing ({len(missing)} of {len(expected)} are)"
            + (hint if missing == {HEAD_NAME} else "")
        )
    for name, shape in sorted(_tensor_shapes(architecture, mappings).items()):
        files.check_dtype(stored[name])
        files.check_shape(stored[name], shape)
    extra = files.names() - {stored[name] for name in expected}
    notes = []
    embedding, head = stored[EMBEDDING_NAME], stored[HEAD_NAME]
    if embedding != EMBEDDING_NAME:
        notes.append(f"weights: tensors are stored as {embedding}, not {EMBEDDING_NAME}")
    ignored = {name for name in extra if name.endswith(IGNORED_SUFFIX)}
    if ignored:
        notes.append(f"weights: {len(ignored)} tensors of rotary angles follow from config.json")
    if architecture.tie_word_embeddings and head in extra:
        _check_tied(files, architecture, embedding, head)
        ignored.add(head)
    images: set[str] = set()
    if read_json_object(folder, CONFIG_NAME).get("model_type") in COMPOSITES:
        images = set(filter(is_image_tensor, extra - ignored))
    if images:
        notes.append(f"weights: {len(images)} tensors of the image model are kept aside")
    extra -= ignored | images
    if extra:
        name = min(extra)
        raise ValueError(
            f"{files.file(name)}: tensor {name} is unexpected for this architecture "
            f"({len(extra)} such tensors)"
        )
    unread = files.unread_files()
    if unread:
        notes.append(f"files passed over: {', '.join(unread)}")
    return {name: stored[name] for name in expected}, tuple(notes)


def _tensor_shapes(
    architecture: Architecture, mappings: Sequence[TensorMapping]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model folder."""
    abstract = nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0)))
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract))}
    n_layers, found = architecture.num_hidden_layers, {}
    for mapping in mappings:
        shape = shapes[mapping.path][len(mapping.stack_shape(n_layers)) :]
        shape, _ = mapping.tensor_slices(shape, tuple(map(slice, shape)))
        found |= dict.fromkeys(mapping.names(n_layers), shape)
    return found


def _check_tied(
    files: SafetensorsReader, architecture: Architecture, embedding: str, head: str
) -> None:
    """Raise an error if the head of a tied model is stored and differs from its embedding."""
    shape = (architecture.vocab_size, architecture.hidden_size)
    if not np.array_equal(files.read(head, shape), files.read(embedding, shape)):
        raise ValueError(
            f"{files.file(head)}: tensor {head} differs from {embedding}, but the "
            "configuration has `tie_word_embeddings` true: set it to false"
        )


def stored_dtype(folder: Path) -> str | None:
    """Return the dtype in which a model folder stores its embedding.

    Args:
        folder: folder of a model.

    Returns:
        Name of the dtype, such as ``bfloat16``; None if the folder has no readable weights.

    Examples:
        >>> stored_dtype(Path("no_model")) is None
        True
    """
    try:
        with SafetensorsReader(folder) as files:
            name = stored_names(files.names(), [EMBEDDING_NAME])[EMBEDDING_NAME]
            return FLOAT_DTYPES[files.dtype(name)].name
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        return None
