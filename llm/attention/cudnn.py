r"""Attention over packed rows on a GPU, by cuDNN's kernel for separate sequences.

The kernel takes sequences and their lengths, and does not know packed rows. So the tokens of a row
are copied to the sequences that they belong to (those of a shared prompt to several), attend there,
and are copied back. Both copies are gathers with a written-out gradient: a derived gradient would
scatter, and add in an order that may change from run to run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from llm.types import Branch, Rows

Implementation = Literal["cudnn", "xla"]


class SequenceIndices(NamedTuple):
    """Indices that map the ``N`` tokens of rows to slots of ``s`` sequences, and back.

    Attributes:
        token: token in each slot of a sequence; ``N`` if the slot is empty.
        lengths: number of tokens of each sequence; 1 if it is empty.
        sequences: sequences that hold a token, by role; ``s`` if there is none.
        output_sequence: sequence that the output of a token is read from; ``s`` for padding.
        slot: slot of a token, the same in all of its sequences.
    """

    token: Int[Array, "s S"]
    lengths: Int[Array, " s"]
    sequences: Int[Array, "N k"]
    output_sequence: Int[Array, " N"]
    slot: Int[Array, " N"]


def sequence_indices(rows: Rows) -> SequenceIndices:
    """Assign every token of packed rows to the sequences of its prompt or response.

    Args:
        rows: rows whose ``bounds`` have the number of segments and the longest sequence.

    Returns:
        Indices of the sequences, ordered by row, segment and role.

    Raises:
        ValueError: if a bound is unknown.
    """
    n_roles, n_segments, longest = rows.bounds.roles, rows.bounds.segments, rows.bounds.longest
    if n_segments is None or longest is None:
        raise ValueError("`rows.bounds` must have `segments` and `longest`, got None")
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
    return SequenceIndices(
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
    """Compute :func:`llm.attention.dispatch.attend` without a soft cap, sequence by sequence.

    Args:
        queries: queries after rotary embedding.
        keys: keys after rotary embedding; each of the ``G`` heads serves ``H / G`` query heads.
        values: values of the same heads as the keys.
        rows: segments, branches and positions of the tokens, with bounds.
        window: number of positions that a token attends to, its own included; None for all.
        scale: factor of the logits.
        implementation: ``cudnn`` needs a GPU and a 16-bit dtype; ``xla`` runs everywhere.

    Returns:
        Mixed values in the dtype of the queries; 0 for padding.
    """
    indices = sequence_indices(rows)
    q, k, v = (_to_sequences(x.reshape(-1, *x.shape[2:]), indices) for x in (queries, keys, values))
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,
        query_seq_lengths=indices.lengths,
        key_value_seq_lengths=indices.lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    return jnp.asarray(_to_rows(mixed, indices)).reshape(queries.shape)


@jax.custom_vjp
def _to_sequences(x: Float[Array, "N h K"], indices: SequenceIndices) -> Float[Array, "s S h K"]:
    """Copy tokens to all of their sequences; empty slots are 0."""
    return _read(x, indices.token)


def _to_sequences_backward(indices: SequenceIndices, cotangent: Array) -> tuple[Array, None]:
    return jnp.sum(_read_at(cotangent, indices.sequences, indices.slot[:, None]), axis=1), None


_to_sequences.defvjp(
    lambda x, indices: (_to_sequences(x, indices), indices), _to_sequences_backward
)


@jax.custom_vjp
def _to_rows(y: Float[Array, "s S h K"], indices: SequenceIndices) -> Float[Array, "N h K"]:
    """Copy each token back from its output sequence; padding is 0."""
    return _read_at(y, indices.output_sequence, indices.slot)


def _to_rows_backward(indices: SequenceIndices, cotangent: Array) -> tuple[Array, None]:
    output_sequence = indices.output_sequence
    sequence = jnp.arange(indices.token.shape[0], dtype=output_sequence.dtype)[:, None]
    is_output = _read(output_sequence, indices.token, fill=-1) == sequence
    return jnp.where(is_output[..., None, None], _read(cotangent, indices.token), 0), None


_to_rows.defvjp(lambda y, indices: (_to_rows(y, indices), indices), _to_rows_backward)


def _read(x: Array, index: Int[Array, "..."], fill: int = 0) -> Array:
    return x.at[index].get(mode="fill", fill_value=fill)


def _read_at(y: Array, sequence: Int[Array, "..."], slot: Int[Array, "..."]) -> Array:
    return y.at[sequence, slot].get(mode="fill", fill_value=0)
