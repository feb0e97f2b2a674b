"""Attention of packed rows on a TPU: Pallas' splash attention, which knows segments, not branches.

In a row that holds *prompt, chosen, rejected* with the prompt once, a rejected token does not see
the chosen response before it. No single list of segments says that. So every branch is mixed in a
call of its own, in which prompt and branch are one segment and all other tokens are alone; each
token takes the result of its branch. Attention is a small share of the work, and the kernel skips
nothing that the other call needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Float, Int

from llm.types import Branch, Rows

from .blockwise import SAVED, Settings

LANES = 128
"""Rows are padded to multiples of it, and heads must be of such a size: a TPU's vector width."""
BLOCKS = (512, 256, 128)
"""Tokens of a block: the first that divides a row."""


def fits(head_size: int) -> bool:
    """Whether the kernel can mix heads of this size.

    Args:
        head_size: of queries, keys and values.

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
    settings: Settings,
    interpret: bool = False,
) -> Float[Array, "r T H K"]:
    """The same as :func:`llm.attention.dispatch.attend` without a window, by splash attention.

    Args:
        queries: turned to their positions.
        keys: likewise, of fewer heads.
        values: of the same heads.
        rows: who sees whom.
        settings: scale and soft cap.
        interpret: run Pallas' interpreter, which needs no TPU.

    Returns:
        In the dtype of the queries; finite for padding too.
    """
    n_tokens, n_heads = queries.shape[1:3]
    missing = -n_tokens % LANES

    def laid_out(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    scale = jnp.asarray(settings.scale, queries.dtype)
    parts = laid_out(queries * scale), laid_out(keys), laid_out(values)
    branches, segments = (
        jnp.pad(jnp.asarray(x), ((0, 0), (0, missing))) for x in (rows.branches, rows.segments)
    )
    attend = _kernel(n_heads, n_tokens + missing, settings.soft_cap, interpret=interpret)

    def branch(number: Branch) -> Array:
        ids = _segments_of_branch(segments, branches, number)
        return jnp.asarray(jax.vmap(attend)(*parts, kernel.SegmentIds(q=ids, kv=ids)))

    def of_branch(number: Branch, mixed: Array, others: Array) -> Array:
        return jnp.where((branches == int(number))[:, None, :, None], mixed, others)

    mixed = branch(Branch.CHOSEN)
    mixed = of_branch(Branch.REJECTED, branch(Branch.REJECTED), mixed)
    if rows.bounds.roles == 3:
        mixed = of_branch(Branch.BASELINE, branch(Branch.BASELINE), mixed)
    return mixed.transpose(0, 2, 1, 3)[:, :n_tokens].astype(queries.dtype)


def _segments_of_branch(
    segments: Int[Array, "r N"], branches: Int[Array, "r N"], number: Branch
) -> Int[Array, "r N"]:
    """Pairs' numbers for their prompts and one branch; a number of its own for any other token."""
    together = (branches == int(Branch.PROMPT)) | (branches == int(number))
    alone = segments.shape[1] + 1 + jnp.arange(segments.shape[1], dtype=segments.dtype)
    return jnp.where(together & (segments > 0), segments, alone)


def _kernel(
    n_heads: int, n_tokens: int, soft_cap: float | None, *, interpret: bool
) -> kernel.SplashAttentionKernel:
    block = next(size for size in BLOCKS if n_tokens % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        # The fused kernel is faster, and keeps a gradient of the queries for every block of keys.
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
            residual_checkpoint_name=SAVED,
            interpret=interpret,
        )
