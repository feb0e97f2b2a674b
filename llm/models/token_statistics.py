r"""Sums over the tokens of responses that some objectives take besides their log-probabilities.

Length desensitization weights the tokens by which one response of a pair is longer than the other.
WPO needs :math:`\log\sum_v\pi(v)^2` at every token, a second pass over the output head without a
gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float, Int

from llm.config import ObjectiveConfig
from llm.parallel.vocab import VocabParallel
from llm.types import Batch, Completions, Role, Rows
from rpo_theory.losses import length_desensitized_weights

from .logprobs import CHUNK_ENTRIES, LANE, sequence_log_probs, token_log_probs
from .protocol import Head, LanguageModel


class ResponseStatistics(NamedTuple):
    r"""Sums over the tokens of the responses of a batch.

    Attributes:
        log_probs: log-probabilities, summed over tokens, nats.
        log_sum_squares: :math:`\sum_t\log\sum_v\pi(v|a_{<t})^2`, without a gradient; None if no
            loss takes it.
        router_loss: see :func:`hidden_states_and_router_loss`.
    """

    log_probs: Float[Array, "n k"]
    log_sum_squares: Float[Array, "n k"] | None
    router_loss: Float[Array, ""] | None


def response_statistics(
    model: LanguageModel, batch: Batch, config: ObjectiveConfig
) -> ResponseStatistics:
    """Return the sums over tokens that an objective is a function of.

    Args:
        model: a model with hidden states and an output head.
        batch: the pairs.
        config: the objective.

    Returns:
        The sums, float32 at least. Under ``"ld_dpo"`` the log-probabilities are those of weighted
        tokens.
    """
    head, completions, n_responses = model.head(), batch.completions, batch.lengths.size
    hidden, router_loss = hidden_states_and_router_loss(model, batch.rows)
    if not config.statistics:
        log_probs = sequence_log_probs(hidden, head, completions, n_responses)
        return ResponseStatistics(log_probs.reshape(batch.lengths.shape), None, router_loss)
    features, counted = _features(hidden, completions, n_responses)
    log_probs = token_log_probs(features, head, completions.target)
    if config.length_alpha is not None:
        log_probs = log_probs * _length_weights(batch, config.length_alpha)
    squares = None
    if "sum_squares" in config.statistics:
        squares = _sum_by_response(token_log_sum_squares(features, head), batch, counted)
    return ResponseStatistics(_sum_by_response(log_probs, batch, counted), squares, router_loss)


def hidden_states_and_router_loss(
    model: LanguageModel, rows: Rows
) -> tuple[Float[Array, "r T D"], Float[Array, ""] | None]:
    """Return the hidden states of rows, and the auxiliary loss of a model's router.

    Args:
        model: a model; a :class:`llm.models.decoder.Decoder` may have experts.
        rows: packed rows of tokens.

    Returns:
        The hidden states after the final norm, and the device's share of
        :func:`llm.models.experts.router_loss`, without its weight in the objective; None for a
        model without experts, or whose ``output_router_logits`` is false.
    """
    architecture = getattr(model, "architecture", None)
    if architecture is None or not (architecture.num_experts and architecture.output_router_logits):
        return model.hidden_states(rows), None
    decoder: Any = model
    return decoder.read(rows, with_router_loss=True)


def token_log_sum_squares(features: Float[Array, "c D"], head: Head) -> Float[Array, " c"]:
    r"""Return :math:`\log\sum_v\pi(v)^2` of the next token after each hidden state.

    Args:
        features: hidden states; no gradient flows to them.
        head: output head, computed in the dtype of ``features``.

    Returns:
        Nats, at most 0, float32 at least.

    Examples:
        >>> head = Head(jnp.zeros((4, 1)), None)
        >>> round(float(jnp.exp(token_log_sum_squares(jnp.ones((1, 1)), head))[0]), 4)
        0.25
    """
    vocab = VocabParallel(head.vocab_axes)
    weight = jax.lax.stop_gradient(head.weight.astype(features.dtype))
    n_tokens = features.shape[0]
    size = min(max(LANE, CHUNK_ENTRIES // weight.shape[0]), n_tokens)
    n_chunks = math.ceil(n_tokens / size)
    padding = n_chunks * size - n_tokens
    chunks = jnp.pad(jax.lax.stop_gradient(features), ((0, padding), (0, 0)))

    def chunk(hidden: Float[Array, "s D"]) -> Float[Array, " s"]:
        logits = Head(weight, head.soft_cap).logits(vocab.all_gather_tokens(hidden))
        normalizer = vocab.reduce_logsumexp(logsumexp(logits, axis=-1))
        squares = vocab.reduce_logsumexp(logsumexp(2.0 * logits, axis=-1))
        return vocab.take_local_tokens(squares - 2.0 * normalizer)

    values = jax.lax.map(chunk, chunks.reshape(n_chunks, size, -1))
    return values.reshape(-1)[:n_tokens]


def _features(
    hidden: Float[Array, "r T D"], completions: Completions, n_responses: int
) -> tuple[Float[Array, "c D"], Array]:
    """Return the hidden state before each token, and which tokens belong to a response."""
    response = jnp.asarray(completions.response)
    counted = (response >= 0) & (response < n_responses)
    flat = hidden.reshape(-1, hidden.shape[-1])
    # Padding may point at any hidden state, including NaN.
    return jnp.where(counted[:, None], flat[jnp.asarray(completions.flat_index)], 0), counted


def _sum_by_response(
    values: Float[Array, " c"], batch: Batch, counted: Array
) -> Float[Array, "n k"]:
    n_pairs, n_roles = batch.lengths.shape
    response = jnp.where(counted, jnp.asarray(batch.completions.response), n_pairs * n_roles)
    sums: Any = jax.ops.segment_sum(values, response, num_segments=n_pairs * n_roles)
    return sums.reshape(n_pairs, n_roles)


def _length_weights(batch: Batch, alpha: float) -> Float[Array, " c"]:
    """Return the weight of every token; tokens of baseline responses all count 1."""
    lengths = jnp.asarray(batch.lengths)
    shorter = jnp.minimum(lengths[:, Role.CHOSEN], lengths[:, Role.REJECTED])
    shared = lengths.at[:, : Role.BASELINE].set(shorter[:, None]).reshape(-1)
    response = jnp.asarray(batch.completions.response)
    positions = _positions(response, shared.size)
    return length_desensitized_weights(
        positions, shared[jnp.minimum(response, shared.size - 1)], alpha=alpha
    )


def _positions(response: Int[Array, " c"], n_responses: int) -> Int[Array, " c"]:
    """Return the position of every token in its response; tokens of a response are consecutive."""
    index = jnp.arange(response.size, dtype=response.dtype)
    first = jax.ops.segment_min(index, response, num_segments=n_responses + 1)
    return index - first[jnp.minimum(response, n_responses)]
