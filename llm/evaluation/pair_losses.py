r"""The losses of an objective, pair by pair, and the sum that each contributes to its batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from llm.config import (
    ObjectiveConfig,
    ObjectiveConstants,
    PairInputs,
    PreferenceTerm,
    RankingInputs,
)
from llm.types import Batch, Role
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.reductions import WeightedSum, reduce_mean, reduce_sft
from rpo_theory.types import ArrayLike


def preference_sums(
    config: ObjectiveConfig, constants: ObjectiveConstants, inputs: PairInputs, batch: Batch
) -> dict[str, WeightedSum]:
    r"""Compute the preference losses of an objective as sums over the pairs of a batch.

    A loss whose record has the scope ``"batch"`` takes this batch for the whole one.

    Args:
        config: the objective.
        constants: constants of the step.
        inputs: log-probabilities of the pairs, see :func:`pair_inputs`.
        batch: the pairs; rows of tokens, ``lengths`` and ``reference`` are not used.

    Returns:
        One sum for each loss, under the name of its metric. A pair with a soft label has the
        expected loss.

    Raises:
        ValueError: if a loss of the whole batch meets weights or soft labels, another method than
            ``"kto"`` meets unpaired rows, or another loss than ``"plackett_luce"`` ranked rows.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> config, log_probs = ObjectiveConfig(method="hinge"), jnp.array([[-1.0, -1.0]])
        >>> inputs = pair_inputs(log_probs, log_probs, batch)
        >>> float(preference_sums(config, config.constants, inputs, batch)["loss/hinge"].mean())
        1.0
    """
    if config.needs_global_batch and not (batch.weights is None and batch.labels is None):
        whole = [repr(term.loss.name) for term in config.terms if term.loss.scope == "batch"]
        raise ValueError(
            f"the rows must have neither weights nor labels for {', '.join(whole)}, which is a "
            "loss of the whole batch: leave the columns out"
        )
    if batch.desirable is not None and config.method != "kto":
        raise ValueError(
            f"`objective.method` must be 'kto' for unpaired rows, got {config.method!r}"
        )
    if batch.ranked is not None and not config.trains_on_rankings:
        raise ValueError(
            f"`objective.method` must be 'plackett_luce' for ranked rows, got {config.method!r}"
        )
    return {
        term.metric: sum_over_pairs(expected_loss(term, constants, inputs, batch), batch)
        for term in config.terms
    }


def pair_inputs(
    policy: Float[Array, "n k"],
    reference: Float[Array, "n k"] | None,
    batch: Batch,
    log_sum_squares: Float[Array, "n k"] | None = None,
) -> PairInputs:
    """Collect what preference losses are functions of.

    Args:
        policy: log-probabilities of the responses, nats.
        reference: the same under the reference; None for zeros.
        batch: the pairs; only ``present``, ``lengths``, ``desirable`` and ``ranked`` are used.
        log_sum_squares: token statistic of the responses, see
            :class:`llm.config.preference_losses.PairInputs`.

    Returns:
        The inputs of the chosen and rejected responses.

    Examples:
        >>> batch = Batch(None, None, np.full((1, 2), 4), np.array([True]), np.array([0]))
        >>> pair_inputs(jnp.zeros((1, 2)), None, batch).weights.chosen.tolist()
        [0.25]
    """
    inverse = 1.0 / jnp.maximum(jnp.asarray(batch.lengths), 1).astype(policy.dtype)
    reference = jnp.zeros_like(policy) if reference is None else reference
    ranking = None
    if batch.ranked is not None:
        ranking = RankingInputs(policy, reference, jnp.asarray(batch.ranked))
    return PairInputs(
        policy=_pair(policy),
        reference=_pair(reference),
        weights=_pair(inverse),
        where=jnp.asarray(batch.present),
        log_sum_squares=None if log_sum_squares is None else _pair(log_sum_squares),
        desirable=None if batch.desirable is None else jnp.asarray(batch.desirable),
        ranking=ranking,
    )


def sft_sum(config: ObjectiveConfig, policy: Float[ArrayLike, "*n k"], batch: Batch) -> WeightedSum:
    r"""Reduce the SFT losses of the baseline responses as the objective asks for.

    Without baseline responses, those of a pair with the soft label :math:`p` are the chosen
    response with probability :math:`p` and the rejected one otherwise. Of unpaired rows they are
    the desirable responses, and of ranked rows the best ones.

    Args:
        config: the objective; ``sft_reduction`` selects the reduction.
        policy: log-probabilities of the responses, nats.
        batch: the pairs; absent pairs have no weight.

    Returns:
        The weighted sum; its mean is the SFT loss.

    Examples:
        >>> batch = Batch(None, None, np.array([[2, 1], [4, 1]]), np.ones(2, bool), np.arange(2))
        >>> config = ObjectiveConfig(sft_reduction="sequence_mean")
        >>> policy = jnp.array([[-2.0, 0.0], [-8.0, 0.0]])
        >>> float(sft_sum(config, policy, batch).mean())
        1.5
    """
    policy, present = jnp.asarray(policy), jnp.asarray(batch.present)
    weights = present_pair_weights(batch, policy.dtype)
    parts = []
    for role, share in _baseline_shares(batch, policy.dtype):
        parts.append(
            reduce_sft(
                losses.sft(policy[..., role], where=present),
                jnp.asarray(batch.lengths)[..., role].astype(policy.dtype),
                reduction=config.sft_reduction,
                weights=weights if share is None else share * weights,
                where=present,
            )
        )
    return parts[0] if len(parts) == 1 else jax.tree.map(jnp.add, *parts)


def baseline_values(values: Float[Array, "n k"], batch: Batch) -> Float[Array, " n"]:
    """Return a value of the baseline response of every pair, or its mean under a soft label.

    Args:
        values: a value of every response.
        batch: the pairs.

    Returns:
        The values of the baseline responses, or of the chosen or best ones if the batch has none.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 3), int), np.array([True]), np.array([0]))
        >>> baseline_values(jnp.array([[1.0, 2.0, 5.0]]), batch).tolist()
        [5.0]
    """
    parts = [
        values[:, role] if share is None else share * values[:, role]
        for role, share in _baseline_shares(batch, values.dtype)
    ]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def rejected_values(values: Float[Array, "n k"], batch: Batch) -> Float[Array, " n"]:
    """Return a value of the rejected response of every pair, or its mean after the best response.

    Args:
        values: a value of every response.
        batch: the pairs, or ranked rows.

    Returns:
        The values of the rejected responses; of ranked rows, the means over the other responses
        than the best one.

    Examples:
        >>> ranked = np.array([[True, True, True, False]])
        >>> present, rows = np.array([True]), np.array([0])
        >>> batch = Batch(None, None, ranked.astype(int), present, rows, ranked=ranked)
        >>> rejected_values(jnp.array([[9.0, 1.0, 2.0, 0.0]]), batch).tolist()
        [1.5]
    """
    if batch.ranked is None:
        return values[:, Role.REJECTED]
    others = jnp.asarray(batch.ranked)[:, 1:]
    count = jnp.maximum(others.sum(axis=1), 1).astype(values.dtype)
    return jnp.where(others, values[:, 1:], 0.0).sum(axis=1) / count


def ordered_share(values: Float[Array, "n k"], batch: Batch) -> Float[Array, " n"]:
    """Return the share of the pairs of responses of each row whose better one has more.

    Args:
        values: a value of every response.
        batch: the pairs, or ranked rows.

    Returns:
        Shares in [0, 1]; a tie is not in order.

    Examples:
        >>> ranked = np.ones((1, 3), bool)
        >>> present, rows = np.array([True]), np.array([0])
        >>> batch = Batch(None, None, ranked.astype(int), present, rows, ranked=ranked)
        >>> round(float(ordered_share(jnp.array([[3.0, 1.0, 2.0]]), batch)[0]), 4)
        0.6667
    """
    if batch.ranked is None:
        return (values[:, Role.CHOSEN] > values[:, Role.REJECTED]).astype(values.dtype)
    kept, rank = jnp.asarray(batch.ranked), jnp.arange(values.shape[1])
    compared = (rank[:, None] < rank) & kept[:, :, None] & kept[:, None, :]
    ordered = compared & (values[:, :, None] > values[:, None, :])
    count = jnp.maximum(compared.sum(axis=(1, 2)), 1)
    return (ordered.sum(axis=(1, 2)) / count).astype(values.dtype)


def sum_over_pairs(values: Float[Array, " n"], batch: Batch) -> WeightedSum:
    """Sum the values of the present pairs with their weights.

    Args:
        values: a value of every pair; those of absent pairs may be anything.
        batch: the pairs.

    Returns:
        The weighted sum.

    Examples:
        >>> present = np.array([True, False])
        >>> batch = Batch(None, None, np.ones((2, 2), int), present, np.array([0, -1]))
        >>> float(sum_over_pairs(jnp.array([2.0, jnp.nan]), batch).mean())
        2.0
    """
    kept = jnp.where(jnp.asarray(batch.present), values, 0.0)
    return reduce_mean(kept, present_pair_weights(batch, values.dtype))


def present_pair_weights(batch: Batch, dtype: DTypeLike) -> Float[Array, "*n"]:
    """Return the weight of every pair, which is 0 for absent pairs.

    Args:
        batch: the pairs.
        dtype: dtype of the weights.

    Returns:
        ``batch.weights`` of present pairs, or 1 if the batch has no weights.

    Examples:
        >>> present = np.array([True, False])
        >>> batch = Batch(None, None, np.ones((2, 2), int), present, np.array([0, -1]))
        >>> present_pair_weights(batch, jnp.float32).tolist()
        [1.0, 0.0]
    """
    present = jnp.asarray(batch.present)
    if batch.weights is None:
        return present.astype(dtype)
    return jnp.where(present, jnp.asarray(batch.weights).astype(dtype), 0.0)


def expected_loss(
    term: PreferenceTerm, constants: ObjectiveConstants, inputs: PairInputs, batch: Batch
) -> Float[Array, " n"]:
    """Return a preference loss of every pair, in expectation over soft labels.

    Args:
        term: loss and options.
        constants: constants of the step.
        inputs: log-probabilities of the pairs.
        batch: the pairs; only ``labels`` is used.

    Returns:
        One loss for each pair, without the weight of the term.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> config, log_probs = ObjectiveConfig(method="hinge"), jnp.array([[-1.0, -1.0]])
        >>> inputs = pair_inputs(log_probs, log_probs, batch)
        >>> expected_loss(config.terms[0], config.constants, inputs, batch).tolist()
        [1.0]
    """
    function = term.loss.function
    if batch.labels is None:
        return function(inputs, constants.beta, term.options)
    pairs = (inputs.policy, inputs.reference, inputs.weights, inputs.log_sum_squares)

    def loss(*pairs: PairLogProbs, where: Array) -> Array:
        policy, reference, weights, *squares = pairs
        exchanged = PairInputs(policy, reference, weights, where, squares[0] if squares else None)
        return function(exchanged, constants.beta, term.options)

    given = [pair for pair in pairs if pair is not None]
    labels = jnp.asarray(batch.labels).astype(inputs.policy.chosen.dtype)
    return losses.expected_over_labels(loss, labels, *given, where=inputs.where)


def _pair(values: Float[Array, "n k"]) -> PairLogProbs:
    return PairLogProbs(values[:, Role.CHOSEN], values[:, Role.REJECTED])


def _baseline_shares(batch: Batch, dtype: DTypeLike) -> list[tuple[int, Float[Array, "*n"] | None]]:
    """Return the roles that the baseline response has, with their probabilities; None for 1."""
    if batch.ranked is not None:
        return [(Role.CHOSEN, None)]
    if batch.lengths.shape[-1] > Role.BASELINE:
        return [(Role.BASELINE, None)]
    if batch.desirable is not None:
        return [(Role.CHOSEN, jnp.asarray(batch.desirable).astype(dtype))]
    if batch.labels is None:
        return [(Role.CHOSEN, None)]
    label = jnp.where(jnp.asarray(batch.present), jnp.asarray(batch.labels).astype(dtype), 1.0)
    return [(Role.CHOSEN, label), (Role.REJECTED, 1.0 - label)]
