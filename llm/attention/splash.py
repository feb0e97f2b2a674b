"""Attention over packed rows on a TPU, by the Pallas kernel splash attention.

The kernel masks by segments. In a row *prompt, chosen, rejected* with a shared prompt, a rejected
token must not attend to the chosen response, which no single assignment of segments expresses. So
the kernel is called once for each branch. In a call, the prompt and the branch are one segment, and
every other token is a segment of its own; each token takes the result of its branch. Attention is a
small share of the work of a layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Float, Int

from llm.types import Branch, Rows

from .blockwise import ATTENTION_RESIDUALS
from .logits import AttentionSettings

LANES = 128
"""Vector width of a TPU: rows are padded to multiples of it, and head sizes must be multiples."""
BLOCKS = (512, 256, 128)
"""Candidate block sizes in tokens; the first that divides a row is used."""


def supports_head_size(head_size: int) -> bool:
    """Return whether the kernel supports heads of a size.

    Args:
        head_size: size of the heads of queries, keys and values.

    Returns:
        True for multiples of :data:`LANES`.
    """
    return head_size % LANES == 0


def attend_with_splash(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r T G K"],
    values: Float[Array, "r T G K"],
    rows: Rows,
    *,
    settings: AttentionSettings,
    interpret: bool = False,
) -> Float[Array, "r T H K"]:
    """Compute :func:`llm.attention.dispatch.attend` without a window by splash attention.

    Args:
        queries: queries after rotary embedding.
        keys: keys after rotary embedding; each of the ``G`` heads serves ``H / G`` query heads.
        values: values of the same heads as the keys.
        rows: segments, branches and positions of the tokens.
        settings: scale and soft cap of the logits.
        interpret: run the kernel in Pallas' interpreter, which needs no TPU.

    Returns:
        Mixed values in the dtype of the queries; finite for padding too.
    """
    n_tokens, n_heads = queries.shape[1:3]
    missing = -n_tokens % LANES

    def pad_and_transpose(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    scale = jnp.asarray(settings.scale, queries.dtype)
    parts = (
        pad_and_transpose(queries * scale),
        pad_and_transpose(keys),
        pad_and_transpose(values),
    )
    branches, segments = (
        jnp.pad(jnp.asarray(x), ((0, 0), (0, missing))) for x in (rows.branches, rows.segments)
    )
    attend = _kernel(n_heads, n_tokens + missing, settings.soft_cap, interpret=interpret)

    def attend_branch(branch: int) -> Array:
        ids = _segments_of_branch(segments, branches, branch)
        return jnp.asarray(jax.vmap(attend)(*parts, kernel.SegmentIds(q=ids, kv=ids)))

    def replace_branch(mixed: Array, branch: int) -> Array:
        is_branch = (branches == branch)[:, None, :, None]
        return jnp.where(is_branch, attend_branch(branch), mixed)

    mixed = attend_branch(int(Branch.CHOSEN))
    for branch in range(int(Branch.REJECTED), 1 + rows.bounds.roles):
        mixed = replace_branch(mixed, branch)
    return mixed.transpose(0, 2, 1, 3)[:, :n_tokens].astype(queries.dtype)


def _segments_of_branch(
    segments: Int[Array, "r N"], branches: Int[Array, "r N"], branch: int
) -> Int[Array, "r N"]:
    """Return the pair's segment for prompts and one branch, and a unique one for other tokens."""
    in_branch = (branches == int(Branch.PROMPT)) | (branches == branch)
    unique = segments.shape[1] + 1 + jnp.arange(segments.shape[1], dtype=segments.dtype)
    return jnp.where(in_branch & (segments > 0), segments, unique)


def _kernel(
    n_heads: int, n_tokens: int, soft_cap: float | None, *, interpret: bool
) -> kernel.SplashAttentionKernel:
    block = next(size for size in BLOCKS if n_tokens % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        # The fused backward kernel is faster, but stores a query gradient for every key block.
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((n_tokens, n_tokens)) for _ in range(n_heads)])
    with jax.numpy_dtype_promotion("standard"):
        return kernel.make_splash_mha(
            mask=mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=soft_cap,
            residual_checkpoint_name=ATTENTION_RESIDUALS,
            interpret=interpret,
        )
