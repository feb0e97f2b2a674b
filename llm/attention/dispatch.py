r"""Attention over rows of tokens, and over the keys and values kept while decoding.

Which tokens see each other is said once, in :func:`visible`; how the sums are done is behind
:func:`attend`, whatever the layout of the rows: short rows at once, long ones in blocks on a CPU,
and by a kernel on a TPU (splash attention) or a GPU (cuDNN's) where there is one that fits.
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

from .blockwise import BLOCK, Settings, attend_in_blocks
from .cudnn import Implementation, attend_by_sequence
from .splash import attend_with_splash, fits

Window = Int[ArrayLike, ""] | int | None
SMALL = 2 * BLOCK
"""Rows of at most so many tokens are mixed at once: blocks would save nothing."""
GPU_KERNELS: dict[str, Implementation] = {
    "bfloat16": "cudnn",
    "float16": "cudnn",
    "float32": "xla",
}
EVERYTHING = np.iinfo(np.int32).max


def attend(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r T G K"],
    values: Float[Array, "r T G K"],
    rows: Rows,
    *,
    window: Window,
    soft_cap: float | None,
    scale: float,
) -> Float[Array, "r T H K"]:
    r"""Mix the values that each token sees.

    .. math:: o_t = \sum_s \mathrm{softmax}_s\big(c\tanh(a\, q_t\cdot k_s / c)\big)\, v_s

    over the tokens :math:`s` that :math:`t` sees; without a cap, the logits are
    :math:`a\, q_t\cdot k_s`.

    Args:
        queries: turned to their positions.
        keys: of ``G`` heads, each serving ``H / G`` query heads in turn; turned as well.
        values: of the same heads.
        rows: who sees whom.
        window: positions seen, a token's own among them; None for all.
        soft_cap: :math:`c`, or None.
        scale: :math:`a`.

    Returns:
        In the dtype of the queries; finite for padding too.
    """
    if queries.shape[1] <= SMALL:
        return _mix(queries, keys, values, visible(rows, window=window), soft_cap, scale)
    kernel = GPU_KERNELS.get(str(queries.dtype)) if jax.default_backend() == "gpu" else None
    if kernel and soft_cap is None and rows.bounds.longest and not isinstance(window, Array):
        own = None if window is None else int(window)
        options = {"window": own, "scale": scale, "implementation": kernel}
        return attend_by_sequence(queries, keys, values, rows, **options)
    span = jnp.asarray(EVERYTHING if window is None else window)
    settings = Settings(soft_cap, scale)

    def in_blocks(q: Array, k: Array, v: Array, rows: Rows, span: Array) -> Array:
        return attend_in_blocks(q, k, v, rows, window=span, settings=settings)

    def with_splash(q: Array, k: Array, v: Array, rows: Rows, span: Array) -> Array:
        del span
        return attend_with_splash(q, k, v, rows, settings=settings)

    everything = window is None or (isinstance(window, int) and window >= queries.shape[1])
    if not (everything and fits(queries.shape[-1])):
        return in_blocks(queries, keys, values, rows, span)
    parts = queries, keys, values, jax.tree.map(jnp.asarray, rows), span
    return jax.lax.platform_dependent(*parts, tpu=with_splash, default=in_blocks)


def visible(rows: Rows, *, window: Window = None) -> Bool[Array, "r T T"]:
    """Which token (second axis) sees which (last axis), as :class:`llm.types.Rows` defines it.

    Args:
        rows: the tokens' segments, branches and positions.
        window: positions seen, a token's own among them; None for all.

    Returns:
        True where it does; padding sees padding only.

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
) -> Float[Array, "r T H K"]:
    """The same as :func:`attend`, over kept keys and values: those of position ``s`` in slot ``s``.

    Args:
        queries: turned to their positions.
        keys: slots after a token's position may hold anything finite.
        values: likewise.
        positions: of the queries; negative for padding.
        window: see :func:`attend`.
        soft_cap: see :func:`attend`.
        scale: see :func:`attend`.

    Returns:
        In the dtype of the queries; finite for padding too.
    """
    distance = positions[:, :, None] - jnp.arange(keys.shape[1], dtype=positions.dtype)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return _mix(queries, keys, values, seen, soft_cap, scale)


def _mix(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r S G K"],
    values: Float[Array, "r S G K"],
    seen: Bool[Array, "r T S"],
    soft_cap: float | None,
    scale: float,
) -> Float[Array, "r T H K"]:
    n_rows, n_tokens, _, head_size = queries.shape
    wide = accumulation_dtype(queries.dtype)
    grouped = queries.reshape(n_rows, n_tokens, keys.shape[2], -1, head_size)
    logits = scale * jnp.einsum("rtghk,rsgk->rghts", grouped, keys, preferred_element_type=wide)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    # A finite bound and not minus infinity: a query that sees nothing must not become NaN.
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("rghts,rsgk->rtghk", weights, values).reshape(queries.shape)
