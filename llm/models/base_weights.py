"""Base weights of a decoder with adapters, in fewer bits while they are frozen."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from llm.config.model import QuantizationName

from .decoder import Decoder
from .lora import SavedParam
from .projections import PROJECTIONS
from .quantization import QuantizedKernel


def compress_base_weights(
    decoder: Decoder,
    *,
    dtype: DTypeLike | None = None,
    quantization: QuantizationName | None = None,
) -> Decoder:
    """Convert the weights that are frozen beside adapters to fewer bits, in place.

    Adapters and modules that are saved with them stay as they are.

    Args:
        decoder: a decoder with adapters.
        dtype: dtype of the frozen weights that are not quantized; None keeps theirs.
        quantization: how the projections of the layers and of their experts are quantized; None for
            not at all.

    Returns:
        The same decoder.

    Raises:
        ValueError: if a projection has an odd number of inputs.
    """
    if quantization is not None:
        owners: tuple[Any, ...] = (decoder.layers, decoder.layers.experts)
        for owner in owners:
            for name in PROJECTIONS:
                projection = getattr(owner, name, None)
                if projection is not None and not isinstance(projection.kernel, SavedParam):
                    projection.kernel = QuantizedKernel(projection.kernel[...], quantization)
    if dtype is not None:
        trained = nnx.Any(nnx.LoRAParam, SavedParam)
        frozen = nnx.state(decoder, nnx.All(nnx.Param, nnx.Not(trained)))
        nnx.update(decoder, jax.tree.map(lambda leaf: leaf.astype(dtype), frozen))
    return decoder
