r"""Attention sequence by sequence: every response behind its prompt, for kernels that know no rows.

cuDNN's attention takes whole sequences with their lengths, and nothing of who else is in a row. So
the tokens of a row go to their places in the sequences that they belong to, those of a shared
prompt to several, are mixed there, and come back. Both ways are reads: their gradients are written
out, so that nothing is added up in an order that may change from run to run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from llm.types import Branch, Rows

Implementation = Literal["cudnn", "xla"]


class Places(NamedTuple):
    """Where the tokens of rows are in sequences, and back; ``N`` tokens, ``s`` sequences.

    Attributes:
        token: of every place of a sequence; ``N`` where there is none.
        lengths: tokens of a sequence; 1 where there is none.
        sequences: that a token is in, by role; ``s`` where it is in none.
        own: the one of them that the token's output is taken from.
        slot: a token's place in all of its sequences.
    """

    token: Int[Array, "s S"]
    lengths: Int[Array, " s"]
    sequences: Int[Array, "N k"]
    own: Int[Array, " N"]
    slot: Int[Array, " N"]


def places(rows: Rows) -> Places:
    """Find them.

    Args:
        rows: with ``bounds`` that say how many segments a row has and how long a sequence is.

    Returns:
        Sequences of all rows, segments and roles in order.

    Raises:
        ValueError: the bounds are not known.
    """
    n_roles, n_segments, longest = rows.bounds.roles, rows.bounds.segments, rows.bounds.longest
    if n_segments is None or longest is None:
        raise ValueError("`rows.bounds` must say how many segments there are and how long")
    n_rows, n_tokens = rows.segments.shape
    segments, branches, slot = (
        jnp.asarray(x).reshape(-1) for x in (rows.segments, rows.branches, rows.positions)
    )
    row = jnp.arange(n_rows * n_tokens, dtype=segments.dtype) // n_tokens
    first = (row * n_segments + segments - 1) * n_roles
    roles = jnp.arange(n_roles, dtype=segments.dtype)
    prompt = branches == int(Branch.PROMPT)
    inside = (segments > 0)[:, None] & (prompt[:, None] | (branches[:, None] == roles + 1))
    n_sequences = n_rows * n_segments * n_roles
    sequences = jnp.where(inside, first[:, None] + roles, n_sequences)
    numbers = jnp.broadcast_to(jnp.arange(row.size, dtype=row.dtype)[:, None], inside.shape)
    slots = jnp.broadcast_to(slot[:, None], inside.shape)
    token = jnp.full((n_sequences, longest), row.size, row.dtype)
    return Places(
        token.at[sequences, slots].set(numbers, mode="drop"),
        jnp.ones(n_sequences, jnp.int32).at[sequences].max(slots + 1, mode="drop"),
        sequences,
        jnp.where(segments > 0, first + jnp.maximum(branches, 1) - 1, n_sequences),
        slot,
    )


def attend_by_sequence(
    queries: Float[Array, "r T H K"],
    keys: Float[Array, "r T G K"],
    values: Float[Array, "r T G K"],
    rows: Rows,
    *,
    window: int | None,
    scale: float,
    implementation: Implementation,
) -> Float[Array, "r T H K"]:
    """The same as :func:`llm.attention.dispatch.attend` without a soft cap, by a kernel for sequences.

    Args:
        queries: turned to their positions.
        keys: likewise, of fewer heads.
        values: of the same heads.
        rows: who sees whom.
        window: positions seen, a token's own among them; None for all.
        scale: of the logits.
        implementation: ``cudnn`` needs a GPU and numbers of 16 bits; ``xla`` runs everywhere.

    Returns:
        In the dtype of the queries; 0 for padding.
    """
    where = places(rows)
    q, k, v = (_spread(x.reshape(-1, *x.shape[2:]), where) for x in (queries, keys, values))
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,
        query_seq_lengths=where.lengths,
        key_value_seq_lengths=where.lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    return jnp.asarray(_collect(mixed, where)).reshape(queries.shape)


@jax.custom_vjp
def _spread(x: Float[Array, "N h K"], where: Places) -> Float[Array, "s S h K"]:
    """Tokens at their places in all sequences that they are in; 0 elsewhere."""
    return _read(x, where.token)


def _spread_backward(where: Places, slope: Array) -> tuple[Array, None]:
    return jnp.sum(_read_at(slope, where.sequences, where.slot[:, None]), axis=1), None


_spread.defvjp(lambda x, where: (_spread(x, where), where), _spread_backward)


@jax.custom_vjp
def _collect(y: Float[Array, "s S h K"], where: Places) -> Float[Array, "N h K"]:
    """Tokens from the sequence that is theirs; 0 for padding."""
    return _read_at(y, where.own, where.slot)


def _collect_backward(where: Places, slope: Array) -> tuple[Array, None]:
    number = jnp.arange(where.token.shape[0], dtype=where.own.dtype)[:, None]
    own = _read(where.own, where.token, fill=-1) == number
    return jnp.where(own[..., None, None], _read(slope, where.token), 0), None


_collect.defvjp(lambda y, where: (_collect(y, where), where), _collect_backward)


def _read(x: Array, index: Int[Array, "..."], fill: int = 0) -> Array:
    return x.at[index].get(mode="fill", fill_value=fill)


def _read_at(y: Array, sequence: Int[Array, "..."], slot: Int[Array, "..."]) -> Array:
    return y.at[sequence, slot].get(mode="fill", fill_value=0)
