"""Adapters as PEFT folders: ``adapter_config.json`` and ``adapter_model.safetensors``.

Tensors have PEFT's names, such as
``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``, and PyTorch's axes: ``A`` is
``[rank, in]`` and ``B`` is ``[out, rank]``. Modules that are saved whole have the names of the
model's tensors after the prefix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from llm.config import LoraConfig, LoraShape
from llm.data.model_folder import ADAPTER_CONFIG_NAME
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import TABLES, lora_shapes, table_shapes
from llm.models.projections import PROJECTIONS
from llm.parallel.mesh import on_host
from rpo_io.bucket_paths import AnyPath, as_path

from .adapter_config import write_adapter_config
from .io import copy_tokenizer_files
from .merging import ExportReport, round_tensor
from .multimodal import MULTIMODAL_PREFIXES
from .names import TensorMapping, folder_mappings, tensor_mappings
from .safetensors import SafetensorsReader, write_safetensors_file
from .shared_folder import shared_atomic_folder

ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Prefix of the names of all tensors: the modules of PEFT around the model."""
JOINED_EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
"""Tensor of all experts in the classes of ``transformers``, whose names PEFT has."""
BASE_LAYER = ".base_layer.weight"
"""End of the name of an embedding's weight, which PEFT saves beside its adapter."""
ParameterPath = tuple[str, ...]


class AdapterTensor(NamedTuple):
    """A tensor of an adapter file and the part of a parameter that it holds.

    Attributes:
        name: name of the tensor.
        path: path of the parameter in the decoder's state.
        layer: index of the layer; None if the parameter is not stacked.
        rank: rank of the adapter; None for a module that is saved whole.
        transposed: whether the tensor is ``[out, in]`` and the parameter ``[in, out]``.
    """

    name: str
    path: ParameterPath
    layer: int | None
    rank: int | None
    transposed: bool

    def location(self) -> tuple[Any, ...]:
        """Return the index of the tensor's values in the parameter of all layers.

        Examples:
            >>> AdapterTensor("name", ("layers", "q_proj", "adapter", "b"), 1, 4, True).location()
            (1, slice(None, 4, None), slice(None, None, None))
        """
        layer = () if self.layer is None else (self.layer,)
        if self.rank is None:
            return (*layer, ...)
        used = slice(self.rank)
        return (*layer, slice(None), used) if self.path[-1] == "a" else (*layer, used, slice(None))


def adapter_tensors(lora: LoraConfig, architecture: Architecture) -> list[AdapterTensor]:
    """Return the tensors of the file of an adapter.

    Args:
        lora: ranks and modules.
        architecture: architecture of the model, see :func:`adapted_architecture`.

    Returns:
        One entry per tensor, sorted by name.

    Raises:
        ValueError: if a projection has another name in the files of the model, or only some
            layers of a module are saved.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> small = Architecture(**sizes, num_attention_heads=2)
        >>> adapter_tensors(LoraConfig(target_modules=("q_proj",)), small)[1].name
        'base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight'
    """
    n_layers, tensors = architecture.num_hidden_layers, []
    mappings = {mapping.path: mapping for mapping in tensor_mappings(architecture)}
    for name, layers in projection_shapes(lora, architecture).items():
        mapping = mappings[("layers", name, "kernel")]
        for layer, (tensor, shape) in enumerate(zip(mapping.names(n_layers), layers, strict=True)):
            if shape is None:
                continue
            module = tensor.removesuffix(".weight")
            if mapping.part is not None or lora.shape_of(module) != shape:
                raise ValueError(
                    f"the adapter of {name} has no name in PEFT's files: the files of this model "
                    f"store it in {tensor}"
                )
            for part, letter in (("a", "A"), ("b", "B")):
                path = ("layers", name, "adapter", part)
                key = f"{PREFIX}{lora.module_name(module)}.lora_{letter}.weight"
                tensors.append(AdapterTensor(key, path, layer, shape.rank, transposed=True))
    for name in table_shapes(lora):
        tensors += _table_tensors(name, lora.module_name(TABLES[name]))
    for mapping in saved_mappings(lora, architecture):
        for layer, name in enumerate(mapping.names(n_layers)):
            index = layer if mapping.stacked else None
            key, transposed = PREFIX + lora.module_name(name), mapping.transposed
            tensors.append(AdapterTensor(key, mapping.path, index, None, transposed))
    return sorted(tensors)


def projection_shapes(
    lora: LoraConfig, architecture: Architecture
) -> dict[str, list[LoraShape | None]]:
    """Return rank and scale of the adapters of the projections that a model has.

    Args:
        lora: ranks and modules.
        architecture: architecture of the model; experts have no adapters.

    Returns:
        See :func:`llm.models.lora.lora_shapes`.

    Raises:
        ValueError: if a name of ``target_modules`` matches no module of the model.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> small = Architecture(**sizes, num_attention_heads=2)
        >>> list(projection_shapes(LoraConfig(target_modules=("v_proj", "q_proj")), small))
        ['q_proj', 'v_proj']
    """
    paths = {mapping.path for mapping in tensor_mappings(architecture)}
    known = [name for name in PROJECTIONS if ("layers", name, "kernel") in paths]
    return lora_shapes(lora, architecture.num_hidden_layers, known)


def saved_mappings(lora: LoraConfig, architecture: Architecture) -> list[TensorMapping]:
    """Return the parameters that are trained whole, as ``modules_to_save`` selects them.

    Args:
        lora: the adapters.
        architecture: architecture of the model.

    Returns:
        The parameters with their tensors; none without ``modules_to_save``.

    Raises:
        ValueError: if a name matches no module, or only some layers of a parameter, experts or
            fused projections are selected.
    """
    n_layers, saved = architecture.num_hidden_layers, []
    mappings = folder_mappings(architecture, [JOINED_EXPERTS])
    modules = [name.rpartition(".")[0] for each in mappings for name in each.names(n_layers)]
    for end in lora.modules_to_save:
        if not any(replace(lora, modules_to_save=(end,)).saves(module) for module in modules):
            raise ValueError(f"`modules_to_save` {end!r} matches no module of this model")
    for mapping in mappings:
        flags = [lora.saves(name.rpartition(".")[0]) for name in mapping.names(n_layers)]
        if any(flags) and not all(flags):
            raise ValueError(
                "`modules_to_save` must select a module in all layers or in none, got "
                f"{list(lora.modules_to_save)}, which select {mapping.name} in some"
            )
        if all(flags) and (mapping.part is not None or "experts" in mapping.path):
            raise ValueError(
                f"`modules_to_save` {list(lora.modules_to_save)} selects {mapping.name}: experts "
                "and fused projections cannot be saved with an adapter"
            )
        if all(flags):
            saved.append(mapping)
    return saved


def adapted_architecture(lora: LoraConfig, architecture: Architecture) -> Architecture:
    """Return the architecture of a model with an adapter.

    PEFT saves and trains a copy of an embedding, or adds an adapter to one of the two modules that
    share it, so that the embedding and the output head of a tied model become two parameters.

    Args:
        lora: the adapters.
        architecture: architecture of the base model.

    Returns:
        The architecture; that of the base model unless a tied embedding is saved or adapted.
    """
    if architecture.tie_word_embeddings and (
        table_shapes(lora) or any(map(lora.saves, TABLES.values()))
    ):
        return replace(architecture, tie_word_embeddings=False)
    return architecture


def with_stored_prefix(folder: Path, lora: LoraConfig) -> LoraConfig:
    """Return adapters with the beginning that the names of modules have in a folder.

    Args:
        folder: folder of the adapter.
        lora: its configuration.

    Returns:
        The adapters; those of a multi-modal model have the names of its text model.

    Raises:
        ValueError: if the file of the tensors is missing or damaged.

    Examples:
        >>> with_stored_prefix(Path("adapter"), LoraConfig()).module_prefix  # doctest: +SKIP
        'model.'
    """
    with _reader(folder) as file:
        names = file.names()
    for prefix in MULTIMODAL_PREFIXES:
        if any(name.startswith(PREFIX + prefix) for name in names):
            return replace(lora, module_prefix=prefix)
    return lora


def check_adapter(
    folder: Path,
    lora: LoraConfig,
    architecture: Architecture,
    shapes: Mapping[Any, tuple[int, ...]],
) -> None:
    """Refuse an adapter that does not fit a model, before anything is computed with it.

    Args:
        folder: folder of the adapter.
        lora: its configuration.
        architecture: architecture of the model with the adapter.
        shapes: shapes of the parameters by path.

    Raises:
        ValueError: if a tensor is missing, unexpected, of the wrong dtype or shape, or not finite;
            the message names file and tensor.
    """
    with _reader(folder) as file:
        expected = {tensor.name for tensor in adapter_tensors(lora, architecture)}
        optional = {name for name in expected if name.endswith(BASE_LAYER)}
        _check_names(folder, expected - (optional - file.names()), file.names())
    for _ in read_adapter(folder, lora, architecture, shapes):
        pass


def read_adapter(
    folder: Path,
    lora: LoraConfig,
    architecture: Architecture,
    shapes: Mapping[Any, tuple[int, ...]],
) -> Iterator[tuple[ParameterPath, np.ndarray]]:
    """Read the parameters of an adapter, one at a time.

    Args:
        folder: folder of the adapter.
        lora: its configuration.
        architecture: architecture of the model with the adapter.
        shapes: shapes of the parameters by path.

    Yields:
        The path of a parameter and its values, in the dtype of the file; layers without an adapter
        and unused ranks are 0.

    Raises:
        ValueError: if a tensor has the wrong shape or holds NaN or infinite numbers; the message
            names file and tensor.
    """
    by_path: dict[ParameterPath, list[AdapterTensor]] = {}
    for tensor in adapter_tensors(lora, architecture):
        by_path.setdefault(tensor.path, []).append(tensor)
    with _reader(folder) as file:
        for path, tensors in by_path.items():
            values: np.ndarray | None = None
            for tensor in tensors:
                if tensor.name.endswith(BASE_LAYER) and tensor.name not in file.names():
                    continue
                part = np.empty(shapes[path], np.bool_)[tensor.location()].shape
                stored = file.read(tensor.name, part[::-1] if tensor.transposed else part)
                if values is None:
                    values = np.zeros(shapes[path], stored.dtype)
                values[tensor.location()] = stored.T if tensor.transposed else stored
            if values is not None:
                yield path, values


def export_adapter(
    decoder: Decoder,
    folder: str | os.PathLike[str] | AnyPath,
    *,
    base: str | None = None,
    dtype: DTypeLike | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write the adapters of a decoder as a folder that PEFT and vLLM load.

    Args:
        decoder: a model with adapters; it is not changed.
        folder: folder to write. It must not exist, or be empty; it appears when it is complete.
        base: name or path of the base model, for ``base_model_name_or_path``.
        dtype: dtype of the tensors; None for that of the parameters.
        tokenizer_folder: folder whose tokenizer files are copied; None for none.
        chat_template: see :func:`llm.hf.io.export_model`.
        template_options: see :func:`llm.hf.io.export_model`.

    Returns:
        Dtype and size of the tensors.

    Raises:
        ValueError: if the decoder has no adapters, the folder is not empty, or a value is too
            large for ``dtype``.
    """
    folder, lora = as_path(folder), decoder.lora
    if lora is None:
        raise ValueError("the model has no adapters: write it whole, without `--adapter`")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not an empty folder: choose another one")
    state = dict(nnx.to_flat_state(nnx.state(decoder)))
    tensors: dict[str, np.ndarray] = {}
    for tensor in adapter_tensors(lora, decoder.architecture):
        values = on_host(state[tensor.path].get_value()[tensor.location()])
        values = values.T if tensor.transposed else values
        tensors[tensor.name] = round_tensor(tensor.name, values, np.dtype(dtype or values.dtype))
    source = None if tokenizer_folder is None else Path(tokenizer_folder)
    with shared_atomic_folder(folder, last=(ADAPTER_CONFIG_NAME,)) as part:
        if jax.process_index() == 0:
            write_adapter_config(part, lora, base=base)
            write_safetensors_file(part / ADAPTER_WEIGHTS_NAME, tensors)
            copy_tokenizer_files(part, source, chat_template, template_options or {})
    n_bytes = sum(values.nbytes for values in tensors.values())
    return ExportReport(next(iter(tensors.values())).dtype.name, n_bytes, None)


def _table_tensors(name: str, module: str) -> list[AdapterTensor]:
    """Return the tensors of the adapter of ``embedding`` or ``output``.

    PEFT saves the weight itself too, as the layer beneath the adapter.
    """
    module, path = f"{PREFIX}{module}", f"{name}_adapter"
    base = AdapterTensor(f"{module}{BASE_LAYER}", (name,), None, None, transposed=False)
    if name == "output":
        return [
            base,
            AdapterTensor(f"{module}.lora_A.weight", (path, "b"), None, None, transposed=False),
            AdapterTensor(f"{module}.lora_B.weight", (path, "a"), None, None, transposed=False),
        ]
    return [
        base,
        AdapterTensor(f"{module}.lora_embedding_A", (path, "a"), None, None, transposed=True),
        AdapterTensor(f"{module}.lora_embedding_B", (path, "b"), None, None, transposed=True),
    ]


def _reader(folder: Path) -> SafetensorsReader:
    pickled = folder / "adapter_model.bin"
    if not (folder / ADAPTER_WEIGHTS_NAME).exists() and pickled.exists():
        raise ValueError(
            f"{pickled}: pickled weights are never read: load the adapter with PEFT and save it "
            "again, which writes safetensors"
        )
    return SafetensorsReader(folder, ADAPTER_WEIGHTS_NAME)


def _check_names(folder: Path, expected: set[str], stored: set[str]) -> None:
    """Refuse a file whose tensors are not those that the configuration and the model have."""
    path = folder / ADAPTER_WEIGHTS_NAME
    if missing := expected - stored:
        raise ValueError(
            f"{path}: tensor {min(missing)} is missing ({len(missing)} of {len(expected)} are): "
            "adapter_config.json and the base model have it"
        )
    if extra := stored - expected:
        raise ValueError(
            f"{path}: tensor {min(extra)} is unexpected ({len(extra)} such tensors): it belongs to "
            "another base model, or to a module that `target_modules` does not name"
        )
