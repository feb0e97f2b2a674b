r"""Low-rank adapters of a decoder's projections (LoRA).

.. math:: y = xW + \frac{\alpha}{\text{rank}}\,(xA)B

:math:`B` starts at 0, so that a new adapter does not change the model. Adapters are variables of
type ``nnx.LoRAParam``: ``nnx.split(decoder, nnx.LoRAParam, ...)`` separates trained parameters from
frozen ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from llm.precision import accumulation_dtype

from .decoder import Decoder
from .layers import PROJECTIONS, Adapter, Projection

ALL_LINEAR = "all-linear"
"""Name of all projections in ``target_modules``, as in PEFT."""


def add_lora(
    decoder: Decoder,
    *,
    rank: int,
    alpha: float,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    rngs: nnx.Rngs,
) -> Decoder:
    """Add adapters to projections of all layers, in place.

    Args:
        decoder: a decoder without adapters.
        rank: rank of the adapters.
        alpha: the adapters' product is multiplied by ``alpha / rank``.
        target_modules: names of projections, such as ``q_proj``, or ``all-linear`` for all.
        rngs: adapters are drawn from the stream ``params``.

    Returns:
        The same decoder.

    Raises:
        ValueError: if a value is out of range, a projection is unknown, or the decoder has adapters
            already.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be 1 or more, got {rank}")
    if not alpha > 0:
        raise ValueError(f"`alpha` must be positive, got {alpha}")
    if has_lora(decoder):
        raise ValueError("the model has adapters already: merge them with `merge_lora` first")
    for name in _targets(target_modules, decoder):
        projection: Projection = getattr(decoder.layers, name)
        *stack, n_in, n_out = projection.kernel[...].shape
        projection.adapter = Adapter(
            tuple(stack),
            n_in,
            n_out,
            rank,
            scale=alpha / rank,
            rngs=rngs,
            param_dtype=projection.kernel[...].dtype,
        )
    return decoder


def merge_lora(decoder: Decoder) -> Decoder:
    """Add the adapters to the weights of their projections and remove them, in place.

    Args:
        decoder: a decoder with or without adapters.

    Returns:
        The same decoder.
    """
    for projection in _projections(decoder):
        dtype = projection.kernel[...].dtype
        projection.kernel[...] = merged_kernel(projection).astype(dtype)
        projection.adapter = None
    return decoder


def has_lora(decoder: Decoder) -> bool:
    """Return whether a decoder has adapters.

    Args:
        decoder: a decoder.

    Returns:
        True if any projection has an adapter.
    """
    return any(projection.adapter is not None for projection in _projections(decoder))


def trainable_filter(decoder: Decoder) -> type[nnx.Variable[Array]]:
    """Select the parameters to train: the adapters if there are any, otherwise all.

    Args:
        decoder: a decoder.

    Returns:
        A variable type for ``nnx.split(decoder, type, ...)``.
    """
    return nnx.LoRAParam if has_lora(decoder) else nnx.Param


def merged_kernel(projection: Projection, layer: int | None = None) -> Float[Array, "... I O"]:
    """Return the weight of a projection, with the product of its adapter added.

    Product and sum are computed in float32 at least, on every device, so that a caller rounds once.

    Args:
        projection: the projection of all layers.
        layer: index of a layer, which needs memory for that layer only; None for all layers.

    Returns:
        The weight, in float32 or float64 if there is an adapter and otherwise in the dtype of the
        parameters; with a leading axis of layers for None.
    """
    index = ... if layer is None else layer
    kernel, adapter = projection.kernel[index], projection.adapter
    if adapter is None:
        return kernel
    wide = accumulation_dtype(kernel.dtype)
    factors = adapter.a[index].astype(wide), adapter.b[index].astype(wide)
    return kernel.astype(wide) + jnp.matmul(*factors, precision="highest") * adapter.scale


def _targets(target_modules: str | Sequence[str], decoder: Decoder) -> list[str]:
    # Experts have no adapters, as in PEFT.
    known = [name for name in PROJECTIONS if getattr(decoder.layers, name) is not None]
    if target_modules == ALL_LINEAR:
        return known
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not names:
        raise ValueError("`target_modules` must name at least one projection, got none")
    if ALL_LINEAR in names:
        return known
    for name in names:
        if name not in known:
            raise ValueError(
                f"`target_modules` must be {ALL_LINEAR} or among {', '.join(known)}, "
                f"got {name!r}: write `model.lora_target_modules: [q_proj, v_proj]`"
            )
    return list(dict.fromkeys(names))


def _projections(decoder: Decoder) -> Iterator[Projection]:
    projections = (getattr(decoder.layers, name) for name in PROJECTIONS)
    return (projection for projection in projections if projection is not None)
