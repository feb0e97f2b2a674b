r"""Log-probabilities of responses, without the logits of all their tokens in memory at once.

The hidden states that predict a response token are gathered. The output head, its log-sum-exp and
the logit of the target are then computed for a chunk of tokens at a time. The gradient is written
out: with logits :math:`z = h W^\top`, capped or not,

.. math:: \frac{\partial\log p(t)}{\partial z_v} = \mathbb 1[v=t] - p(v),

so the backward pass recomputes the logits of a chunk and saves none. Everything that is
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

from llm.parallel.vocab import VocabParallel
from llm.precision import accumulation_dtype
from llm.types import Batch, Completions
from rpo_theory.types import ArrayLike

from .protocol import Head, LanguageModel

CHUNK_ENTRIES = 2**25
"""Logits in memory at once: 128 MiB in float32, 261 tokens of Llama 3."""
CHUNK_PARTS = 8
"""Parts of a single chunk; parts that hold padding only are skipped."""
LANE = 8
"""Chunks are multiples of this number of tokens, for the vector units."""


def response_log_probs(model: LanguageModel, batch: Batch) -> Float[Array, "n k"]:
    """Return the log-probability of every response of a batch under a model.

    Args:
        model: a model with hidden states and an output head.
        batch: the pairs.

    Returns:
        Sums over the tokens of each response in nats, float32 at least; 0 for absent responses.
    """
    n_pairs, n_roles = batch.lengths.shape
    log_probs = sequence_log_probs(
        model.hidden_states(batch.rows), model.head(), batch.completions, n_pairs * n_roles
    )
    return log_probs.reshape(n_pairs, n_roles)


def sequence_log_probs(
    hidden: Float[Array, "r T D"], head: Head, completions: Completions, n_responses: int
) -> Float[Array, " responses"]:
    r"""Sum the log-probabilities of the tokens of every response.

    Args:
        hidden: hidden states after the final norm.
        head: output head.
        completions: the tokens of the responses, and where they are predicted.
        n_responses: number of responses; tokens with a response id outside of it are padding.

    Returns:
        :math:`\log\pi(a|x)` in nats, float32 at least; 0 for a response without tokens.

    References:
        `liu:24`, eq. 4.8, is written in these log-probabilities.

    Examples:
        >>> head, hidden = Head(jnp.zeros((4, 3)), None), jnp.zeros((1, 2, 3))
        >>> tokens = Completions(jnp.array([0, 1]), jnp.array([3, 0]), jnp.array([0, 0]))
        >>> bool(sequence_log_probs(hidden, head, tokens, 1)[0] == -2 * jnp.log(4.0))
        True
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    response = jnp.asarray(completions.response)
    counted = (response >= 0) & (response < n_responses)
    # Padding may point at any hidden state, including NaN.
    features = jnp.where(counted[:, None], flat[jnp.asarray(completions.flat_index)], 0)
    n_counted = jnp.max(jnp.where(counted, jnp.arange(1, counted.size + 1), 0))
    log_probs = token_log_probs(features, head, completions.target, n_counted=n_counted)
    segment = jnp.where(counted, response, n_responses)
    return jax.ops.segment_sum(log_probs, segment, num_segments=n_responses)


def token_log_probs(
    features: Float[Array, "c D"],
    head: Head,
    targets: Int[ArrayLike, " c"],
    *,
    n_counted: Int[ArrayLike, ""] | None = None,
) -> Float[Array, " c"]:
    r"""Return the log-probability of one token after each hidden state.

    At most :data:`CHUNK_ENTRIES` logits are in memory at once.

    Args:
        features: hidden states.
        head: output head, computed in the dtype of ``features``.
        targets: ids of the tokens.
        n_counted: number of tokens before the padding at the end, which is skipped where
            possible; None if every token counts.

    Returns:
        Log-probabilities in nats, float32 at least; finite and without meaning for padding.

    Examples:
        >>> head = Head(jnp.array([[1.0], [0.0]]), None)
        >>> round(float(token_log_probs(jnp.array([[2.0]]), head, jnp.array([0]))[0]), 4)
        -0.1269
    """
    n_tokens = features.shape[0]
    # Devices along fsdp gather their tokens: a chunk holds that many times as many.
    n_gathered = jax.lax.axis_size("fsdp") if head.vocab_axes else 1
    chunk_size = max(LANE, CHUNK_ENTRIES // (head.weight.shape[0] * n_gathered))
    n_chunks, size = 1, n_tokens
    if n_tokens > chunk_size:
        size = LANE * math.ceil(n_tokens / math.ceil(n_tokens / chunk_size) / LANE)
        n_chunks = math.ceil(n_tokens / size)
    padding = n_chunks * size - n_tokens
    chunks = jnp.pad(features, ((0, padding), (0, 0))).reshape(n_chunks, size, -1)
    target = jnp.pad(jnp.asarray(targets), (0, padding)).reshape(n_chunks, size)
    counted = jnp.asarray(n_tokens if n_counted is None else n_counted)
    log_probs: Array = _chunked(
        chunks, head.weight, target, counted, head.soft_cap, head.vocab_axes
    )
    return log_probs.reshape(-1)[:n_tokens]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
    features: Float[Array, "m s D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "m s"],
    counted: Int[Array, ""],
    soft_cap: float | None,
    vocab_axes: tuple[str, ...],
) -> Float[Array, "m s"]:
    return _forward(features, weight, targets, counted, soft_cap, vocab_axes)[0]


def _forward(
    features: Float[Array, "m s D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "m s"],
    counted: Int[Array, ""],
    soft_cap: float | None,
    vocab_axes: tuple[str, ...],
) -> tuple[Float[Array, "m s"], tuple]:
    vocab = VocabParallel(vocab_axes)
    head = Head(weight.astype(features.dtype), soft_cap)

    def chunk_log_probs(
        carry: None, chunk: tuple[Array, Array]
    ) -> tuple[None, tuple[Array, Array]]:
        hidden, target = vocab.all_gather_tokens(chunk)
        logits = head.logits(hidden)
        normalizer = vocab.reduce_logsumexp(logsumexp(logits, axis=-1))
        index, is_local = vocab.local_index(target, weight.shape[0])
        chosen = jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0]
        chosen = vocab.reduce_sum(jnp.where(is_local, chosen, 0))
        log_probs, normalizer = vocab.take_local_tokens((chosen - normalizer, normalizer))
        return carry, (log_probs, normalizer)

    limit = None if vocab_axes else counted
    _, (log_probs, normalizers) = _scan(chunk_log_probs, None, (features, targets), limit)
    return log_probs, (features, weight, targets, counted, normalizers)


def _backward(
    soft_cap: float | None,
    vocab_axes: tuple[str, ...],
    residuals: tuple,
    cotangents: Float[Array, "m s"],
) -> tuple[Float[Array, "m s D"], Float[Array, "V D"], None, None]:
    features, weight, targets, counted, normalizers = residuals
    wide, matrix = accumulation_dtype(features.dtype), weight.astype(features.dtype)
    vocab, head = VocabParallel(vocab_axes), Head(matrix, soft_cap)

    def chunk_gradients(d_weight: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, target, normalizer, cotangent = vocab.all_gather_tokens(chunk)
        logits = head.logits(hidden)
        index, is_local = vocab.local_index(target, weight.shape[0])
        is_target = index[:, None] == jnp.arange(weight.shape[0], dtype=target.dtype)
        is_target &= is_local[:, None]
        probabilities = jnp.exp(logits - normalizer[:, None])
        d_logits = cotangent[:, None] * (is_target.astype(wide) - probabilities)
        if soft_cap is not None:
            d_logits = d_logits * (1.0 - jnp.square(logits / soft_cap))
        d_logits = d_logits.astype(hidden.dtype)
        added = jnp.einsum("sv,sd->vd", d_logits, hidden, preferred_element_type=wide)
        d_hidden = jnp.einsum("sv,vd->sd", d_logits, matrix, preferred_element_type=wide)
        return d_weight + added, vocab.reduce_scatter_tokens(d_hidden).astype(hidden.dtype)

    zeros = jnp.zeros(weight.shape, wide)
    limit = None if vocab_axes else counted
    chunks = features, targets, normalizers, cotangents
    d_weight, d_features = _scan(chunk_gradients, zeros, chunks, limit)
    return d_features, d_weight.astype(weight.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _scan(
    function: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    chunks: tuple[Array, ...],
    counted: Int[Array, ""] | None,
) -> tuple[Any, Any]:
    """Run ``lax.scan``; of a single chunk, run the shortest prefix with all counted tokens."""
    n_chunks, size = chunks[0].shape[:2]
    if n_chunks > 1:
        return jax.lax.scan(function, carry, chunks)
    multiples = (LANE * math.ceil(size * k / CHUNK_PARTS / LANE) for k in range(CHUNK_PARTS + 1))
    sizes = sorted({min(size, multiple) for multiple in multiples})
    if counted is None:
        sizes = [size]

    def run_prefix(n_tokens: int, carry: Any, chunk: tuple[Array, ...]) -> tuple[Any, Any]:
        carry, out = function(carry, jax.tree.map(lambda leaf: leaf[0, :n_tokens], chunk))
        missing = size - n_tokens

        def pad(leaf: Array) -> Array:
            return jnp.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1)))[None]

        return carry, jax.tree.map(pad, out)

    index = 0 if counted is None else jnp.searchsorted(jnp.array(sizes), counted)
    return jax.lax.switch(index, [partial(run_prefix, n) for n in sizes], carry, chunks)
