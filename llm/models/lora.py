r"""Low-rank adapters inside a model's projections (LoRA).

.. math:: y = xW + \frac{\alpha}{\text{rank}}\,(xA)B

with :math:`B = 0` at first, so that the model starts as it was. Adapters are variables of type
``nnx.LoRAParam``: ``nnx.split(decoder, nnx.LoRAParam, ...)`` separates what is trained from what is
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from .decoder import Decoder
from .layers import PROJECTIONS, Adapter, Projection

ALL = "all-linear"


def add_lora(
    decoder: Decoder,
    *,
    rank: int,
    alpha: float,
    target_modules: str | Sequence[str] = ALL,
    rngs: nnx.Rngs,
) -> Decoder:
    """Give projections of all layers an adapter, in place.

    Args:
        decoder: has no adapters yet.
        rank: of the added product.
        alpha: the product is multiplied by ``alpha / rank``.
        target_modules: names of projections, such as ``q_proj``, or ``all-linear``.
        rngs: adapters are drawn from ``params``.

    Returns:
        The same decoder.

    Raises:
        ValueError: a value out of range, an unknown projection, or adapters there already.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be 1 or more, got {rank}")
    if not alpha > 0:
        raise ValueError(f"`alpha` must be positive, got {alpha}")
    if has_lora(decoder):
        raise ValueError("the model has adapters already: merge them first")
    for name in _targets(target_modules):
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


def merge(decoder: Decoder) -> Decoder:
    """Add all adapters to the weights they belong to and take them out, in place.

    Args:
        decoder: with or without adapters.

    Returns:
        The same decoder.
    """
    for projection in _projections(decoder):
        projection.kernel[...] = merged_kernel(projection)
        projection.adapter = None
    return decoder


def has_lora(decoder: Decoder) -> bool:
    """Whether a model has adapters.

    Args:
        decoder: any.

    Returns:
        True if a projection has one.
    """
    return any(projection.adapter is not None for projection in _projections(decoder))


def trainable_filter(decoder: Decoder) -> type[nnx.Variable]:
    """What to train: the adapters if there are any, otherwise all parameters.

    Args:
        decoder: any.

    Returns:
        A filter for ``nnx.split(decoder, filter, ...)``.
    """
    return nnx.LoRAParam if has_lora(decoder) else nnx.Param


def merged_kernel(projection: Projection, layer: int | None = None) -> Float[Array, "... I O"]:
    """Weight of a projection with its adapter's product added.

    Args:
        projection: of all layers.
        layer: of this one alone, which then needs no memory for the others; None for all.

    Returns:
        In the dtype of the weight.
    """
    index = ... if layer is None else layer
    kernel, adapter = projection.kernel[index], projection.adapter
    if adapter is None:
        return kernel
    return kernel + jnp.matmul(adapter.a[index], adapter.b[index]) * adapter.scale


def _targets(target_modules: str | Sequence[str]) -> list[str]:
    if target_modules == ALL:
        return list(PROJECTIONS)
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not names:
        raise ValueError("`target_modules` must name a projection, got none")
    for name in names:
        if name not in PROJECTIONS:
            raise ValueError(
                f"`target_modules` must be {ALL} or out of {', '.join(PROJECTIONS)}, got {name!r}"
            )
    return list(dict.fromkeys(names))


def _projections(decoder: Decoder) -> Iterator[Projection]:
    return (getattr(decoder.layers, name) for name in PROJECTIONS)
