"""The model that a configuration asks for: loaded, or drawn at random; with adapters if asked."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from .architecture import Architecture
from .config import ModelConfig
from .hf_io import load_model
from .lora import add_lora
from .model import Decoder


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
        try:
            architecture = Architecture(**(config.architecture or {}))
        except TypeError as error:
            raise ValueError(f"`model.architecture`: {error}") from error
        rngs = nnx.Rngs(config.seed)
        decoder = Decoder(
            architecture, rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=config.remat
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
