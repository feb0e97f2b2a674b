"""Models from a configuration: loaded from a folder or initialized at random, with LoRA adapters.

A run resolves its model once with :func:`resolve_model`; tokenizer, data and parameters are then
read from the folder that was found. Parameters are created where they are used: on a mesh every
device reads, or draws, its own shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Sharding

from llm.config import MeshConfig, ModelConfig
from llm.data.model_folder import resolve_model_folder
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import add_lora
from llm.parallel.mesh import make_devices, single_device

from .architecture_mapping import architecture_from_mapping
from .config import to_hf_config
from .io import model_notes, read_architecture, read_parameters


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model configuration whose folder is found and whose architecture is known.

    Attributes:
        config: the configuration.
        folder: local folder with ``config.json``, weights and tokenizer; None if the parameters
            are initialized at random.
        architecture: read from the folder, or given by the configuration.
        notes: what the folder holds that is not used, as sentences for a log.
    """

    config: ModelConfig
    folder: Path | None
    architecture: Architecture
    notes: tuple[str, ...] = ()


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """Find the folder of a model and read its architecture; no parameter is read.

    Args:
        config: ``path`` is a local folder or a name on the Hugging Face hub, which is downloaded.

    Returns:
        The configuration with the local folder and the architecture.

    Raises:
        ValueError: if there is no such model, its architecture is invalid, or no model type of
            Hugging Face can describe it, so that a trained policy could not be exported.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> model = resolve_model(ModelConfig(architecture=sizes | {"num_attention_heads": 2}))
        >>> model.folder, model.architecture.hidden_size
        (None, 4)
    """
    if config.path is not None:
        folder = resolve_model_folder(config.path)
        architecture = read_architecture(folder)
        to_hf_config(architecture)
        return ResolvedModel(
            config=config, folder=folder, architecture=architecture, notes=model_notes(folder)
        )
    try:
        architecture = architecture_from_mapping(config.architecture or {})
        to_hf_config(architecture)  # a policy that cannot be exported is refused before training
    except ValueError as error:
        raise ValueError(f"`model.architecture`: {error}") from error
    return ResolvedModel(config=config, folder=None, architecture=architecture)


def build_model(model: ResolvedModel, mesh: MeshConfig | None = None) -> Decoder:
    """Create a decoder with its parameters: read from the model's folder, or drawn at random.

    Args:
        model: the resolved configuration; its dtypes, seed and adapters apply.
        mesh: how parameters are sharded over all devices; None for one device.

    Returns:
        The decoder. On a mesh no sharded parameter was ever whole on a device or in a process.

    Raises:
        ValueError: if a tensor of the folder is missing, unknown, of the wrong shape or not
            finite, or the mesh does not divide the devices or the heads.
    """
    decoder = abstract_model(model)
    devices = single_device() if mesh is None else make_devices(mesh, decoder)
    graphdef, abstract = nnx.split(decoder)
    leaves = dict(nnx.to_flat_state(abstract))
    shardings = {path: devices.sharding(path) for path in leaves}
    parameters: dict[tuple, Array] = {}
    if model.folder is not None:
        parameters |= read_parameters(model.folder, model.architecture, leaves, shardings)
    missing = [path for path in leaves if path not in parameters]
    parameters |= _draw_parameters(model, missing, shardings)
    state = {path: leaf.replace(parameters[path]) for path, leaf in leaves.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(state))


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
    if config.lora_r > 0:
        add_lora(
            decoder,
            rank=config.lora_r,
            alpha=config.lora_alpha,
            target_modules=config.lora_target_modules or "all-linear",
            rngs=nnx.Rngs(config.seed + 1),
        )
    return decoder
