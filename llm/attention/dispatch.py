r"""Attention over packed rows, and over the cache of keys and values while decoding.

:func:`visible` defines which tokens attend to each other. :func:`attend` chooses the
implementation; no other module depends on the platform:

======== ===================== ===================================================================
platform rows                  implementation
======== ===================== ===================================================================
any      up to 128 tokens      dense
CPU      longer                :mod:`llm.attention.blockwise`
GPU      longer                :mod:`llm.attention.cudnn`, without soft cap and sinks
TPU      longer                :mod:`llm.attention.splash`, without window and sinks if heads fit
======== ===================== ===================================================================

A GPU or TPU without a fitting kernel uses the blockwise implementation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from llm.precision import accumulation_dtype
from llm.types import Branch, Rows
from rpo_theory.types import ArrayLike

from .blockwise import BLOCK, attend_in_blocks
from .cudnn import Implementation, attend_by_sequence
from .logits import AttentionSettings, apply_soft_cap
from .splash import attend_with_splash, supports_head_size

Window = Int[ArrayLike, ""] | int | None
MAX_DENSE_TOKENS = 2 * BLOCK
"""Longest row for dense attention; blocks would save nothing."""
GPU_KERNELS: dict[str, Implementation] = {
    "bfloat16": "cudnn",
    "float16": "cudnn",
    "float32": "xla",
}
NO_WINDOW = np.iinfo(np.int32).max
"""Window that contains every position, where local and global layers share a program."""


def attend(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r T G K"],
    values: Float[Array, "r T G K"],
    rows: Rows,
    *,
    window: Window,
    soft_cap: float | None,
    scale: float,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "r T H K"]:
    r"""Mix the values of the tokens that each token attends to.

    .. math:: o_t = \sum_s \mathrm{softmax}_s\big(c\tanh(a\, q_t\cdot k_s / c)\big)\, v_s

    over the tokens :math:`s` that :math:`t` attends to; without a cap, the logits are
    :math:`a\, q_t\cdot k_s`. A sink adds :math:`e^{z_h}` to the denominator of the softmax of head
    :math:`h`, so that the weights sum to less than 1.

    Args:
        queries: queries after rotary embedding.
        keys: keys after rotary embedding; each of the ``G`` heads serves ``H / G`` query heads.
        values: values of the same heads as the keys.
        rows: segments, branches and positions of the tokens.
        window: number of positions that a token attends to, its own included; None for all.
        soft_cap: the cap :math:`c`; None for no cap.
        scale: the factor :math:`a`.
        sinks: logits :math:`z_h` of the sinks; None for none.

    Returns:
        Mixed values in the dtype of the queries; finite for padding too.
    """
    if queries.shape[1] <= MAX_DENSE_TOKENS:
        seen = visible(rows, window=window)
        return _attend_densely(queries, keys, values, seen, soft_cap, scale, sinks)
    kernel = GPU_KERNELS.get(str(queries.dtype)) if jax.default_backend() == "gpu" else None
    plain = soft_cap is None and sinks is None
    if kernel and plain and rows.bounds.longest and not isinstance(window, Array):
        static_window = None if window is None else int(window)
        options = {"window": static_window, "scale": scale, "implementation": kernel}
        return attend_by_sequence(queries, keys, values, rows, **options)
    window_size = jnp.asarray(NO_WINDOW if window is None else window)
    settings = AttentionSettings(soft_cap, scale)

    def in_blocks(q: Array, k: Array, v: Array, rows: Rows, window: Array) -> Array:
        return attend_in_blocks(q, k, v, rows, window=window, settings=settings, sinks=sinks)

    def with_splash(q: Array, k: Array, v: Array, rows: Rows, window: Array) -> Array:
        del window
        return attend_with_splash(q, k, v, rows, settings=settings)

    is_global = window is None or (isinstance(window, int) and window >= queries.shape[1])
    if not (is_global and supports_head_size(queries.shape[-1])) or sinks is not None:
        return in_blocks(queries, keys, values, rows, window_size)
    parts = queries, keys, values, jax.tree.map(jnp.asarray, rows), window_size
    return jax.lax.platform_dependent(*parts, tpu=with_splash, default=in_blocks)


def visible(rows: Rows, *, window: Window = None) -> Bool[Array, "r T T"]:
    """Return the attention mask of rows, as :class:`llm.types.Rows` defines it.

    Args:
        rows: segments, branches and positions of the tokens.
        window: number of positions that a token attends to, its own included; None for all.

    Returns:
        True if the token of the second axis attends to the token of the last axis; padding attends
        to padding only.

    Examples:
        >>> ones = jnp.ones((1, 3), int)
        >>> rows = Rows(ones, jnp.array([[0, 1, 1]]), ones, jnp.array([[0, 1, 2]]))
        >>> visible(rows)[0].astype(int).tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    positions, segments, branches = map(jnp.asarray, (rows.positions, rows.segments, rows.branches))
    columns = jnp.arange(segments.shape[1])
    seen = (columns[:, None] >= columns) & (segments[:, :, None] == segments[:, None, :])
    seen &= (branches[:, None, :] == int(Branch.PROMPT)) | (
        branches[:, :, None] == branches[:, None, :]
    )
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return seen


def attend_cached(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r S G K"],
    values: Float[Array, "r S G K"],
    positions: Int[Array, "r T"],
    *,
    window: Window,
    soft_cap: float | None,
    scale: float,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "r T H K"]:
    """Compute :func:`attend` over a cache, whose slot ``s`` holds position ``s``.

    Args:
        queries: queries after rotary embedding.
        keys: cached keys; slots after a token's position may hold any finite values.
        values: cached values, in the same slots.
        positions: positions of the queries; negative for padding.
        window: see :func:`attend`.
        soft_cap: see :func:`attend`.
        scale: see :func:`attend`.
        sinks: see :func:`attend`.

    Returns:
        Mixed values in the dtype of the queries; finite for padding too.
    """
    distance = positions[:, :, None] - jnp.arange(keys.shape[1], dtype=positions.dtype)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return _attend_densely(queries, keys, values, seen, soft_cap, scale, sinks)


def _attend_densely(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r S G K"],
    values: Float[Array, "r S G K"],
    seen: Bool[Array, "r T S"],
    soft_cap: float | None,
    scale: float,
    sinks: Float[Array, " H"] | None,
) -> Float[Array, "r T H K"]:
    n_rows, n_tokens, _, head_size = queries.shape
    wide = accumulation_dtype(queries.dtype)
    grouped = queries.reshape(n_rows, n_tokens, keys.shape[2], -1, head_size)
    logits = scale * jnp.einsum("rtghk,rsgk->rghts", grouped, keys, preferred_element_type=wide)
    logits = apply_soft_cap(logits, soft_cap)
    # The least number and not minus infinity: a query that attends to nothing must not become NaN.
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(wide).min)
    if sinks is not None:  # a key of every query whose value is zero
        sink = sinks.astype(wide).reshape(1, keys.shape[2], -1, 1, 1)
        sink = jnp.broadcast_to(sink, (*logits.shape[:-1], 1))
        logits = jnp.concatenate([logits, sink], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : keys.shape[1]].astype(values.dtype)
    return jnp.einsum("rghts,rsgk->rtghk", weights, values).reshape(queries.shape)
