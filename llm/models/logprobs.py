r"""Log-probabilities of responses, without ever holding the logits of all their tokens.

The hidden states that predict a response token are gathered, and the output head, its log-sum-exp
and the target's logit are computed for a chunk of tokens at a time. The gradient is written by
hand: with logits :math:`z = h W^\top`, capped or not,

.. math:: \frac{\partial\log p(t)}{\partial z_v} = \mathbb 1[v=t] - p(v),

so the backward pass computes a chunk's logits once more instead of keeping them. Everything that is
exponentiated or summed is float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, Int

from llm.parallel.vocab import Words
from llm.precision import accumulation_dtype
from llm.types import Batch, Completions
from rpo_theory.types import ArrayLike

from .protocol import Head, LanguageModel

CHUNK_ENTRIES = 2**25  # logits alive at once: 128 MiB in float32, 261 tokens of Llama 3
PARTS = 8  # of one chunk, of which those without tokens are left out
LANE = 8  # several chunks are multiples of it, for the vector units


def response_log_probs(
    model: LanguageModel, batch: Batch, *, chunk_size: int | None = None
) -> Float[Array, "n k"]:
    """Log-probability of every response of a batch under a model.

    Args:
        model: maps rows of tokens to hidden states, and has an output head.
        batch: the pairs.
        chunk_size: see :func:`sequence_log_probs`.

    Returns:
        Nats, summed over tokens, float32 at least; 0 for absent responses.
    """
    n_pairs, n_roles = batch.lengths.shape
    log_probs = sequence_log_probs(
        model.hidden_states(batch.rows),
        model.head(),
        batch.completions,
        n_pairs * n_roles,
        chunk_size=chunk_size,
    )
    return log_probs.reshape(n_pairs, n_roles)


def sequence_log_probs(
    hidden: Float[Array, "r T D"],
    head: Head,
    completions: Completions,
    n_responses: int,
    *,
    chunk_size: int | None = None,
) -> Float[Array, " responses"]:
    r"""Sum the log-probabilities of the tokens of every response.

    Args:
        hidden: hidden states after the final norm.
        head: output embedding and soft cap.
        completions: which tokens count, where they are predicted, whose they are.
        n_responses: how many responses there are; tokens of others (padding) are left out.
        chunk_size: most tokens whose logits are alive at once, rounded up to a multiple of 8; by
            default as many as fit into ``CHUNK_ENTRIES`` logits.

    Returns:
        :math:`\log\pi(a|x)`, nats, float32 at least; 0 for a response without tokens.

    References:
        The log-probabilities that `liu:24`, eq. 4.8, is written in.

    Examples:
        >>> head, hidden = Head(jnp.zeros((4, 3)), None), jnp.zeros((1, 2, 3))
        >>> tokens = Completions(jnp.array([0, 1]), jnp.array([3, 0]), jnp.array([0, 0]))
        >>> bool(sequence_log_probs(hidden, head, tokens, 1)[0] == -2 * jnp.log(4.0))
        True
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    response = jnp.asarray(completions.response)
    counted = (response >= 0) & (response < n_responses)
    # Padding may point anywhere, at hidden states that are NaN too.
    features = jnp.where(counted[:, None], flat[jnp.asarray(completions.place)], 0)
    n_counted = jnp.max(jnp.where(counted, jnp.arange(1, counted.size + 1), 0))
    log_probs = token_log_probs(
        features, head, completions.target, chunk_size=chunk_size, n_counted=n_counted
    )
    owner = jnp.where(counted, response, n_responses)
    return jax.ops.segment_sum(log_probs, owner, num_segments=n_responses)


def token_log_probs(
    features: Float[Array, "c D"],
    head: Head,
    targets: Int[ArrayLike, " c"],
    *,
    chunk_size: int | None = None,
    n_counted: Int[ArrayLike, ""] | None = None,
) -> Float[Array, " c"]:
    r"""Log-probability of one token after each hidden state.

    Args:
        features: hidden states.
        head: output embedding and soft cap; computed with in the dtype of ``features``.
        targets: ids of the tokens.
        chunk_size: see :func:`sequence_log_probs`.
        n_counted: from this place on all is padding, on which no work need be spent; None where
            every token counts.

    Returns:
        Nats, float32 at least; anything finite for padding.

    Raises:
        ValueError: if ``chunk_size`` is not positive.

    Examples:
        >>> head = Head(jnp.array([[1.0], [0.0]]), None)
        >>> round(float(token_log_probs(jnp.array([[2.0]]), head, jnp.array([0]))[0]), 4)
        -0.1269
    """
    n_tokens = features.shape[0]
    if chunk_size is None:
        at_once = jax.lax.axis_size("fsdp") if head.words_over else 1
        chunk_size = max(LANE, CHUNK_ENTRIES // (head.weight.shape[0] * at_once))
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be 1 or more, got {chunk_size}")
    n_chunks, size = 1, n_tokens
    if n_tokens > chunk_size:
        size = LANE * math.ceil(n_tokens / math.ceil(n_tokens / chunk_size) / LANE)
        n_chunks = math.ceil(n_tokens / size)
    padding = n_chunks * size - n_tokens
    chunks = jnp.pad(features, ((0, padding), (0, 0))).reshape(n_chunks, size, -1)
    target = jnp.pad(jnp.asarray(targets), (0, padding)).reshape(n_chunks, size)
    counted = jnp.asarray(n_tokens if n_counted is None else n_counted)
    log_probs: Array = _chunked(
        chunks, head.weight, target, counted, head.soft_cap, head.words_over
    )
    return log_probs.reshape(-1)[:n_tokens]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
    features: Float[Array, "m s D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "m s"],
    counted: Int[Array, ""],
    soft_cap: float | None,
    words_over: tuple[str, ...],
) -> Float[Array, "m s"]:
    return _forward(features, weight, targets, counted, soft_cap, words_over)[0]


def _forward(
    features: Float[Array, "m s D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "m s"],
    counted: Int[Array, ""],
    soft_cap: float | None,
    words_over: tuple[str, ...],
) -> tuple[Float[Array, "m s"], tuple]:
    words = Words(words_over)

    def one(carry: None, chunk: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        hidden, target = words.everyone(chunk)
        logits = _logits(hidden, matrix, soft_cap)
        normaliser = words.log_total(logsumexp(logits, axis=-1))
        place, mine = words.own(target, weight.shape[0])
        chosen = jnp.take_along_axis(logits, place[:, None], axis=-1)[:, 0]
        chosen = words.total(jnp.where(mine, chosen, 0))
        log_probs, normaliser = words.back((chosen - normaliser, normaliser))
        return carry, (log_probs, normaliser)

    matrix = weight.astype(features.dtype)
    limit = None if words_over else counted
    _, (log_probs, normalizers) = _scan(one, None, (features, targets), limit)
    return log_probs, (features, weight, targets, counted, normalizers)


def _backward(
    soft_cap: float | None,
    words_over: tuple[str, ...],
    residuals: tuple,
    cotangent: Float[Array, "m s"],
) -> tuple[Float[Array, "m s D"], Float[Array, "V D"], None, None]:
    features, weight, targets, counted, normalizers = residuals
    wide, matrix = accumulation_dtype(features.dtype), weight.astype(features.dtype)
    words = Words(words_over)

    def one(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, target, normaliser, slope = words.everyone(chunk)
        logits = _logits(hidden, matrix, soft_cap)
        place, mine = words.own(target, weight.shape[0])
        is_target = place[:, None] == jnp.arange(weight.shape[0], dtype=target.dtype)
        is_target &= mine[:, None]
        error = slope[:, None] * (is_target.astype(wide) - jnp.exp(logits - normaliser[:, None]))
        if soft_cap is not None:
            error = error * (1.0 - jnp.square(logits / soft_cap))
        error = error.astype(hidden.dtype)
        into_weight = jnp.einsum("sv,sd->vd", error, hidden, preferred_element_type=wide)
        into_hidden = jnp.einsum("sv,vd->sd", error, matrix, preferred_element_type=wide)
        return total + into_weight, words.scattered(into_hidden).astype(hidden.dtype)

    zero = jnp.zeros(weight.shape, wide)
    limit = None if words_over else counted
    chunks = features, targets, normalizers, cotangent
    total, into_features = _scan(one, zero, chunks, limit)
    return into_features, total.astype(weight.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _scan(
    function: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    chunks: tuple[Array, ...],
    counted: Int[Array, ""] | None,
) -> tuple[Any, Any]:
    """``lax.scan``; where there is one chunk no loop, and little more than its counted tokens."""
    n_chunks, size = chunks[0].shape[:2]
    if n_chunks > 1:
        return jax.lax.scan(function, carry, chunks)
    sizes = sorted({min(size, LANE * math.ceil(size * k / PARTS / LANE)) for k in range(PARTS + 1)})
    if counted is None:
        sizes = [size]

    def first(n_tokens: int, carry: Any, chunk: tuple[Array, ...]) -> tuple[Any, Any]:
        carry, out = function(carry, jax.tree.map(lambda leaf: leaf[0, :n_tokens], chunk))
        missing = size - n_tokens

        def padded(leaf: Array) -> Array:
            return jnp.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1)))[None]

        return carry, jax.tree.map(padded, out)

    choice = 0 if counted is None else jnp.searchsorted(jnp.array(sizes), counted)
    return jax.lax.switch(choice, [partial(first, n) for n in sizes], carry, chunks)


def _logits(
    hidden: Float[Array, "s D"], weight: Float[Array, "V D"], soft_cap: float | None
) -> Float[Array, "s V"]:
    logits = jnp.einsum(
        "sd,vd->sv", hidden, weight, preferred_element_type=accumulation_dtype(hidden.dtype)
    )
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
