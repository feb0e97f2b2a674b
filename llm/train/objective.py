r"""The objective of a training step, from log-probabilities of responses.

The losses are those of :mod:`rpo_theory.losses`, averaged by :mod:`rpo_theory.reductions`: a
language model trains on the same functions that the theory is checked with. Sums over microbatches
and devices are divided once, by the weights of the global batch, so that accumulation, packing and
the mesh do not change the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from llm.config import ObjectiveConfig, ObjectiveConstants
from llm.evaluation.metrics import MetricSums, compute_metric_sums, log_ratio_quantiles
from llm.evaluation.pair_losses import present_pair_weights, sft_sum
from llm.precision import accumulation_dtype
from llm.types import Batch, Role
from rpo_theory.reductions import WeightedSum, reduce_mean
from rpo_theory.types import ArrayLike


class Normalizers(NamedTuple):
    """Divisors of the losses of a global batch; they depend on the data only.

    Attributes:
        pairs: sum of the weights of the pairs, divisor of the preference loss.
        sft: divisor of the SFT loss: the same, or the number of tokens under ``"pooled_mean"``.
    """

    pairs: Float[Array, ""]
    sft: Float[Array, ""]


def normalizers(config: ObjectiveConfig, batch: Batch) -> Normalizers:
    """Compute the divisors of a global batch.

    Args:
        config: the objective.
        batch: a batch; leading axes of its arrays, such as that of microbatches, are summed over.

    Returns:
        The divisors, float32 or wider.

    Examples:
        >>> batch = Batch(None, None, np.ones((2, 2), int), np.ones(2, bool), np.arange(2))
        >>> float(normalizers(ObjectiveConfig(), batch).pairs)
        2.0
    """
    lengths = jnp.asarray(batch.lengths)
    dtype = jnp.float32 if batch.weights is None else jnp.asarray(batch.weights).dtype
    zeros = jnp.zeros(lengths.shape, accumulation_dtype(dtype))
    return Normalizers(
        pairs=reduce_mean(zeros[..., 0], present_pair_weights(batch, zeros.dtype)).weight,
        sft=sft_sum(config, zeros, batch).weight,
    )


def loss_share(
    config: ObjectiveConfig,
    sums: MetricSums,
    divisors: Normalizers,
    constants: ObjectiveConstants | None = None,
) -> Float[Array, ""]:
    """Compute the contribution of a microbatch to the loss of the global batch.

    Args:
        config: the objective.
        sums: weighted sums of the microbatch, from
            :func:`llm.evaluation.metrics.compute_metric_sums`.
        divisors: :func:`normalizers` of the global batch.
        constants: constants of the step; None for those of the configuration.

    Returns:
        Contribution in nats. The contributions of all microbatches, and their gradients, add up to
        the loss of the global batch and its gradient.

    Examples:
        >>> sums = {"loss/sft": WeightedSum(jnp.array(6.0), jnp.array(1.0))}
        >>> batch_of_three = Normalizers(pairs=jnp.array(3.0), sft=jnp.array(3.0))
        >>> float(loss_share(ObjectiveConfig(method="sft"), sums, batch_of_three))
        2.0
    """
    share = jnp.zeros_like(sums["loss/sft"].sum)
    weight = config.sft_weight_at(config.constants if constants is None else constants)
    if config.trains_sft:
        share += weight * _divide(sums["loss/sft"], divisors.sft)
    for term in config.terms:
        share += term.weight * _divide(sums[term.metric], divisors.pairs)
    return share


def whole_batch_sums(
    config: ObjectiveConfig,
    scored: Sequence[tuple[Batch, np.ndarray]],
    constants: ObjectiveConstants | None = None,
) -> MetricSums:
    """Compute the sums of pairs that were scored in several batches, as of one batch.

    Losses of the whole batch need this; those of pairs may also be added up.

    Args:
        config: the objective.
        scored: batches ``[parts, shards, ...]`` with the log-probabilities of their responses,
            ``[parts, shards, n, k]``.
        constants: constants of the step; None for those of the configuration.

    Returns:
        The sums over all pairs.
    """

    def flat(leaves: Sequence[Any]) -> Array:
        return jnp.concatenate([np.reshape(leaf, (-1, *np.shape(leaf)[3:])) for leaf in leaves])

    nothing: Any = None  # the tokens have been scored already
    batches = [batch._replace(rows=nothing, completions=nothing) for batch, _ in scored]
    batch = jax.tree.map(lambda *leaves: flat(leaves), *batches)
    policy = flat([log_probs for _, log_probs in scored])
    return compute_metric_sums(config, policy, batch.reference, batch, constants=constants)


def chosen_log_ratio_quantiles(
    scored: Sequence[tuple[Batch, Float[np.ndarray, "*n k"]]],
) -> dict[str, float]:
    """Compute quantiles of the log-ratios of chosen responses, or of desirable ones.

    Args:
        scored: batches with their reference, and the log-probabilities of their responses.

    Returns:
        Those of :func:`llm.evaluation.metrics.log_ratio_quantiles`; empty if there is no such
        response.

    Examples:
        >>> one, given = np.array([True]), np.array([[-2.0, -9.0]])
        >>> batch = Batch(None, None, np.ones((1, 2), int), one, np.array([0]), given)
        >>> scored = [(batch, np.array([[-1.0, -9.0]]))]
        >>> chosen_log_ratio_quantiles(scored)["theory/log_ratio_median"]
        1.0
    """
    policies, references = [], []
    for batch, log_probs in scored:
        kept = np.asarray(batch.present)
        if batch.desirable is not None:
            kept = kept & np.asarray(batch.desirable)
        policies.append(log_probs[kept, Role.CHOSEN])
        references.append(np.asarray(batch.reference)[kept, Role.CHOSEN])
    policy, reference = np.concatenate(policies), np.concatenate(references)
    return log_ratio_quantiles(policy, reference) if policy.size else {}


def flag_non_finite_pairs(
    policy: Float[ArrayLike, "n k"], reference: Float[ArrayLike, "n k"] | None, batch: Batch
) -> Bool[Array, " n"]:
    """Flag the pairs with a log-probability that is NaN or infinite.

    Args:
        policy: log-probabilities of the responses under the policy, nats.
        reference: log-probabilities under the reference; None if there is none.
        batch: the pairs.

    Returns:
        True for each such pair; absent pairs are never flagged.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> flag_non_finite_pairs(jnp.array([[-1.0, jnp.nan]]), None, batch).tolist()
        [True]
    """
    finite = jnp.isfinite(jnp.asarray(policy)).all(axis=1)
    if reference is not None:
        finite &= jnp.isfinite(jnp.asarray(reference)).all(axis=1)
    return jnp.asarray(batch.present) & ~finite


def _divide(reduction: WeightedSum, weight: Float[Array, ""]) -> Float[Array, ""]:
    return WeightedSum(reduction.sum, weight.astype(reduction.sum.dtype)).mean()
