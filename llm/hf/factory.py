"""Models from a configuration: loaded from a folder or initialized at random, with LoRA adapters.

A run resolves its model once with :func:`resolve_model`; tokenizer, data and parameters are then
read from the folder that was found. Parameters are created where they are used: on a mesh every
device reads, or draws, its own shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Sharding

from llm.config import LoraConfig, MeshConfig, ModelConfig
from llm.data.model_folder import ADAPTER_CONFIG_NAME, resolve_model_folder
from llm.models.architecture import Architecture
from llm.models.base_weights import compress_base_weights
from llm.models.decoder import Decoder
from llm.models.lora import add_product, apply_lora, mark_saved, table_shapes
from llm.parallel.mesh import Devices, make_devices, single_device
from llm.precision import accumulation_dtype

from .adapter_config import read_adapter_config
from .adapters import (
    adapted_architecture,
    adapter_tensors,
    check_adapter,
    projection_shapes,
    read_adapter,
    saved_mappings,
    with_stored_prefix,
)
from .architecture_mapping import architecture_from_mapping
from .config import to_hf_config
from .io import model_notes, read_architecture, read_parameters
from .multimodal import module_prefix


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model configuration whose folder is found and whose architecture is known.

    Attributes:
        config: the configuration, with the base model of its adapter as ``path``.
        folder: local folder with ``config.json``, weights and tokenizer; None if the parameters
            are initialized at random.
        architecture: read from the folder, or given by the configuration. A tied embedding that is
            saved with an adapter is not tied.
        lora: adapters that are trained; None if all parameters are.
        adapter: folder and configuration of the PEFT adapter that is read; None for none.
        notes: what the folder holds that is not used, as sentences for a log.
    """

    config: ModelConfig
    folder: Path | None
    architecture: Architecture
    lora: LoraConfig | None = None
    adapter: tuple[Path, LoraConfig] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_merged(self) -> bool:
        """Whether the adapter is merged into the weights.

        Examples:
            >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
            >>> model = ModelConfig(architecture=sizes | {"num_attention_heads": 2})
            >>> resolve_model(model).is_merged
            False
        """
        return self.adapter is not None and self.config.merge_adapter


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Find the folder of a model and read its architecture; no parameter is read.

    The tensors of an adapter are read, to refuse one of another model.

    Args:
        config: ``path`` is a local folder or a name on the Hugging Face hub, which is downloaded.

    Returns:
        The configuration with the local folder and the architecture.

    Raises:
        ValueError: if there is no such model, its architecture is invalid, no model type of
            Hugging Face can describe it, so that a trained policy could not be exported, or the
            adapter is not one of this model.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> model = resolve_model(ModelConfig(architecture=sizes | {"num_attention_heads": 2}))
        >>> model.folder, model.architecture.hidden_size
        (None, 4)
    """
    adapter, notes = None, ()
    if config.adapter is not None:
        adapter_folder = resolve_model_folder(config.adapter)
        settings = read_adapter_config(adapter_folder)
        adapter = adapter_folder, with_stored_prefix(adapter_folder, settings.lora)
        notes = _describe_base(config, adapter_folder, settings.base)
        config = replace(config, path=base_path(config))
    if config.path is not None:
        folder = resolve_model_folder(config.path)
        architecture = read_architecture(folder)
        to_hf_config(architecture)
        notes = (*model_notes(folder), *notes)
    else:
        folder = None
        try:
            architecture = architecture_from_mapping(config.architecture or {})
            to_hf_config(
                architecture
            )  # a policy that cannot be exported is refused before training
        except ValueError as error:
            raise ValueError(f"`model.architecture`: {error}") from error
    resolved = ResolvedModel(
        config=config, folder=folder, architecture=architecture, adapter=adapter, notes=notes
    )
    return _with_adapters(resolved)


def base_path(config: ModelConfig) -> str | None:
    """Return the folder or hub name of the weights that adapters are added to.

    Args:
        config: configuration of a model.

    Returns:
        ``config.path``, or else the local folder that ``config.adapter`` names as its base model;
        None if the weights are drawn at random.

    Raises:
        ValueError: if the adapter names no local folder.

    Examples:
        >>> base_path(ModelConfig(path="policy"))
        'policy'
    """
    if config.path is not None or config.architecture is not None or config.adapter is None:
        return config.path
    base = read_adapter_config(resolve_model_folder(config.adapter)).base
    if base is None or not Path(base).is_dir():
        raise ValueError(
            f"`model.path` is missing: the base model of the adapter {config.adapter} is "
            f"{base or 'not named'}, which is no local folder: give `model.path`, or "
            f"correct `base_model_name_or_path` in its {ADAPTER_CONFIG_NAME}"
        )
    return base


def _describe_base(config: ModelConfig, folder: Path, base: str | None) -> tuple[str, ...]:
    """Return a note for the log if an adapter was trained on a model of another name."""
    if base is None or config.path is None or Path(base) == Path(config.path):
        return ()
    return (f"{folder}: the adapter was trained on {base}; `model.path` is {config.path}",)


def _with_adapters(model: ResolvedModel) -> ResolvedModel:
    """Check adapters against the model; return it with its adapters and final architecture."""
    try:
        lora = model.config.new_lora()
        if lora is not None:
            lora = replace(lora, module_prefix=module_prefix(model.folder))
            projection_shapes(lora, model.architecture)
            saved_mappings(lora, model.architecture)
    except ValueError as error:
        raise ValueError(f"`model.lora_*`: {error}") from error
    if model.adapter is not None:
        folder, stored = model.adapter
        try:
            architecture = adapted_architecture(stored, model.architecture)
            adapter_tensors(stored, architecture)
        except ValueError as error:
            raise ValueError(f"{folder / ADAPTER_CONFIG_NAME}: {error}") from error
        adapted = replace(model, lora=stored, architecture=architecture)
        # The shapes are those of any dtype; float64 would need another mode of JAX here.
        narrow = replace(adapted.config, dtype="float32", param_dtype="float32")
        shapes = _shapes(replace(adapted, config=narrow))
        check_adapter(folder, stored, architecture, shapes)
        model = replace(adapted, lora=None) if model.config.merge_adapter else adapted
    if lora is None:
        return model
    architecture = adapted_architecture(lora, model.architecture)
    return replace(model, lora=lora, architecture=architecture)


def build_model(
    model: ResolvedModel, mesh: MeshConfig | None = None, *, max_length: int | None = None
) -> Decoder:
    """Create a decoder with its parameters: read from the model's folder, or drawn at random.

    Args:
        model: the resolved configuration; its dtypes, seed and adapters apply.
        mesh: how parameters are sharded over all devices; None for one device.
        max_length: tokens of the longest sequence that it is used for, which decides about the
            factors of ``longrope``; None decides for each batch.

    Returns:
        The decoder. On a mesh no sharded parameter was ever whole on a device or in a process;
        those of an adapter are whole on the host.

    Raises:
        ValueError: if a tensor of the folder is missing, unknown, of the wrong shape or not
            finite, or the mesh does not divide the devices or the heads.
    """
    decoder = abstract_model(model)
    decoder.max_length = max_length
    devices = single_device() if mesh is None else make_devices(mesh, decoder)
    if model.is_merged and model.config != _uncompressed(model).config:
        # The adapter is added to the weights as they are stored, and the sums are compressed.
        merged = build_model(_uncompressed(model), mesh, max_length=max_length)
        graphdef, state = nnx.split(_compress(merged, model.config))
        return nnx.merge(graphdef, devices.put(state))
    graphdef, abstract = nnx.split(decoder)
    leaves = dict(nnx.to_flat_state(abstract))
    shardings = {path: devices.sharding(path) for path in leaves}
    parameters: dict[tuple, Array] = {}
    if model.folder is not None:
        base = read_architecture(model.folder)
        parameters |= read_parameters(model.folder, base, leaves, shardings)
        if base.tie_word_embeddings and ("output",) in leaves:
            dtype = leaves[("output",)].dtype
            parameters[("output",)] = jnp.array(parameters[("embedding",)], dtype, copy=True)
    stored = dict(_read_adapter(model, devices))
    if not model.is_merged:
        parameters |= stored
    missing = [path for path in leaves if path not in parameters]
    parameters |= _draw_parameters(model, missing, shardings)
    if model.is_merged:
        parameters |= _merge(model, parameters, stored)
    state = {path: leaf.replace(parameters[path]) for path, leaf in leaves.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(state))


def _read_adapter(model: ResolvedModel, devices: Devices) -> Iterator[tuple[tuple, Array]]:
    """Yield the parameters of the adapter's folder; the factors of a merged one are replicated."""
    if model.adapter is None:
        return
    folder, lora = model.adapter
    adapted = dict(nnx.to_flat_state(nnx.state(abstract_model(replace(model, lora=lora)))))
    shapes = _shapes(replace(model, lora=lora))
    for path, values in read_adapter(folder, lora, model.architecture, shapes):
        narrow = values.astype(adapted[path].dtype)
        sharding = devices.sharding(() if model.is_merged and _is_factor(path) else path)
        yield path, jax.make_array_from_callback(narrow.shape, sharding, narrow.__getitem__)


def _shapes(model: ResolvedModel) -> dict[tuple, tuple[int, ...]]:
    """Return the shapes of all parameters by path, before quantization."""
    leaves = nnx.to_flat_state(nnx.state(abstract_model(_uncompressed(model))))
    return {path: leaf.shape for path, leaf in leaves}


def _uncompressed(model: ResolvedModel) -> ResolvedModel:
    """Return the model whose frozen weights have the dtype of the parameters."""
    return replace(model, config=replace(model.config, base_dtype=None, quantization=None))


def _compress(decoder: Decoder, config: ModelConfig) -> Decoder:
    """Convert the frozen weights of a decoder with adapters, in place."""
    dtype = None if config.base_dtype is None else jnp.dtype(config.base_dtype)
    return compress_base_weights(decoder, dtype=dtype, quantization=config.quantization)


def _merge(
    model: ResolvedModel, parameters: Mapping[tuple, Array], stored: Mapping[tuple, Array]
) -> dict[tuple, Array]:
    """Return the parameters that a merged adapter changes."""
    assert model.adapter is not None
    merged = {path: stored[path] for path in stored if not _is_factor(path)}
    for name, shape in table_shapes(model.adapter[1]).items():
        table = merged.get((name,), parameters[(name,)])
        a, b = (stored[(f"{name}_adapter", part)] for part in ("a", "b"))
        scale = jnp.array(shape.scale, accumulation_dtype(table.dtype))
        merged[(name,)] = add_product(table, a, b, scale).astype(table.dtype)
    for name, layers in projection_shapes(model.adapter[1], model.architecture).items():
        path = ("layers", name, "kernel")
        kernel, scales = parameters[path], [0.0 if each is None else each.scale for each in layers]
        a, b = (stored[("layers", name, "adapter", part)] for part in ("a", "b"))
        merged_kernel = add_product(
            kernel, a, b, jnp.array(scales, accumulation_dtype(kernel.dtype))
        )
        merged[path] = merged_kernel.astype(kernel.dtype)
    return {path: jax.device_put(each, parameters[path].sharding) for path, each in merged.items()}


def _is_factor(path: tuple) -> bool:
    """Return whether a parameter is a factor of an adapter, and not a module that is saved."""
    return len(path) > 1 and path[-2].endswith("adapter")


def abstract_model(model: ResolvedModel) -> Decoder:
    """Create a decoder that holds shapes and dtypes but no numbers.

    Args:
        model: the resolved configuration.

    Returns:
        A decoder whose parameters are ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: if the configuration asks for LoRA adapters of unknown modules.
    """
    return nnx.eval_shape(lambda: _initialize(model))


def _draw_parameters(
    model: ResolvedModel, paths: Sequence[tuple], shardings: Mapping[tuple, Sharding]
) -> dict[tuple, Array]:
    """Draw the parameters at some paths; the compiler removes the draws of all others."""

    def draw() -> list[Array]:
        leaves = dict(nnx.to_flat_state(nnx.state(_initialize(model))))
        return [leaves[path].get_value() for path in paths]

    out_shardings = [shardings[path] for path in paths]
    return dict(zip(paths, jax.jit(draw, out_shardings=out_shardings)(), strict=True))


def _initialize(model: ResolvedModel) -> Decoder:
    """Initialize the decoder and its adapters at random."""
    config = model.config
    decoder = Decoder(
        model.architecture,
        rngs=nnx.Rngs(config.seed),
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        remat=config.remat,
    )
    if model.lora is not None:
        apply_lora(decoder, model.lora, rngs=nnx.Rngs(config.seed + 1))
        saved = saved_mappings(model.lora, model.architecture)
        mark_saved(decoder, [mapping.path for mapping in saved])
        _compress(decoder, config)
    return decoder
