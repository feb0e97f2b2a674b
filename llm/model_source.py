"""The model that a configuration asks for: loaded, or drawn at random; with adapters if asked."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from .architecture import Architecture
from .config import ModelConfig
from .hf_io import find_model, load_model, read_architecture
from .lora import add_lora
from .model import Decoder


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that a configuration asks for; no parameter is read.

    Args:
        config: where the model comes from.

    Returns:
        The architecture.

    Raises:
        ValueError: no such model, or an architecture that cannot be.
    """
    if config.path is not None:
        return read_architecture(find_model(config.path))
    try:
        return Architecture(**(config.architecture or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`model.architecture`: {error}") from error


def make_model(config: ModelConfig) -> Decoder:
    """Make a model.

    Args:
        config: where it comes from, its dtypes and its adapters.

    Returns:
        The decoder.

    Raises:
        ValueError: no such model, or an architecture that cannot be.
    """
    dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    if config.path is not None:
        decoder = load_model(config.path, dtype=dtype, param_dtype=param_dtype, remat=config.remat)
    else:
        rngs = nnx.Rngs(config.seed)
        decoder = Decoder(
            architecture_of(config),
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=config.remat,
        )
    if config.lora_r > 0:
        targets = config.lora_target_modules or "all-linear"
        add_lora(
            decoder,
            rank=config.lora_r,
            alpha=config.lora_alpha,
            target_modules=targets,
            rngs=nnx.Rngs(config.seed + 1),
        )
    return decoder
