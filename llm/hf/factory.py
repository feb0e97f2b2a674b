"""The model that a configuration asks for: loaded, or drawn at random; with adapters if asked.

It is made where it will be used: on a mesh every device reads, or draws, its own share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from llm.parallel.mesh import devices_of

from .io import read_architecture, read_parameters


def resolve_architecture(config: ModelConfig) -> Architecture:
    """The architecture that a configuration asks for; no parameter is read.

    Args:
        config: where the model comes from.

    Returns:
        The architecture.

    Raises:
        ValueError: no such model, or an architecture that cannot be.
    """
    if config.path is not None:
        return read_architecture(resolve_model_folder(config.path))
    try:
        return Architecture(**(config.architecture or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`model.architecture`: {error}") from error


def build_model(config: ModelConfig, mesh: MeshConfig | None = None) -> Decoder:
    """Make a model, every parameter where it will be used.

    Args:
        config: where it comes from, its dtypes and its adapters.
        mesh: how the parameters are split over all devices; None for one device.

    Returns:
        The decoder. On a mesh no parameter was ever whole on a device or in a process, but for
        what is not split.

    Raises:
        ValueError: no such model, or an architecture that cannot be.
    """
    model = abstract_model(config)
    devices = None if mesh is None else devices_of(mesh, model)
    graphdef, abstract = nnx.split(model)
    leaves = dict(nnx.to_flat_state(abstract))
    where = None
    if devices is not None:
        where = {path: devices.sharding(path) for path in leaves}
    made: dict[tuple, Array] = {}
    if config.path is not None:
        folder = resolve_model_folder(config.path)
        made |= read_parameters(folder, read_architecture(folder), leaves, where)
    made |= _drawn(config, [path for path in leaves if path not in made], where)
    state = {path: leaf.replace(made[path]) for path, leaf in leaves.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(state))


def _drawn(
    config: ModelConfig, paths: Sequence[tuple], where: Mapping[tuple, Sharding] | None
) -> dict[tuple, Array]:
    """Parameters drawn at random; the compiler leaves out those that are not asked for."""

    def draw() -> list[Array]:
        every = dict(nnx.to_flat_state(nnx.state(_described(config))))
        return [every[path].get_value() for path in paths]

    shardings = None if where is None else [where[path] for path in paths]
    return dict(zip(paths, jax.jit(draw, out_shardings=shardings)(), strict=True))


def abstract_model(config: ModelConfig) -> Decoder:
    """A model that exists as shapes only.

    Args:
        config: where it would come from.

    Returns:
        A decoder whose parameters are ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: no such model, or an architecture that cannot be.
    """
    resolve_architecture(config)  # its errors as they are, not from within a trace
    return nnx.eval_shape(lambda: _described(config))


def _described(config: ModelConfig) -> Decoder:
    """The decoder with its adapters, drawn at random."""
    decoder = Decoder(
        resolve_architecture(config),
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
