r"""From log-probabilities of responses to the objective of a training step, and its metrics.

No loss is written here: the per-example losses are those of :mod:`rpo_theory.losses` and the ways
to average them those of :mod:`rpo_theory.reductions`, so that a language model is trained on the
very functions that the theory is checked with. This module picks the losses of a method, keeps
totals that add up over the parts of a batch, and divides once, over the global batch: neither
accumulation nor packing nor the mesh changes the objective.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from llm.config import ObjectiveConfig
from llm.evaluation.metrics import (
    MetricSums,
    preference_loss_name,
    present_pair_weights,
    reduce_sft_loss,
)
from llm.precision import accumulation_dtype
from llm.types import Batch
from rpo_theory.reductions import WeightedSum, reduce_mean
from rpo_theory.types import ArrayLike


class Normalizers(NamedTuple):
    """What the totals of the whole batch are divided by: data alone, known before any model runs.

    Attributes:
        pairs: sum of the weights of the pairs.
        sft: the same, or their tokens under ``"pooled_mean"``.
    """

    pairs: Float[Array, ""]
    sft: Float[Array, ""]


def normalizers(config: ObjectiveConfig, batch: Batch) -> Normalizers:
    """Weights of the global batch.

    Args:
        config: the objective.
        batch: a batch; its arrays may have leading axes (accumulation), which are summed over.

    Returns:
        The weights, float32 at least.
    """
    lengths = jnp.asarray(batch.lengths)
    dtype = jnp.float32 if batch.weights is None else jnp.asarray(batch.weights).dtype
    zeros = jnp.zeros(lengths.shape[:-1], accumulation_dtype(dtype))
    return Normalizers(
        pairs=reduce_mean(zeros, present_pair_weights(batch, zeros.dtype)).weight,
        sft=reduce_sft_loss(config, zeros, batch).weight,
    )


def loss_share(
    config: ObjectiveConfig, totals: MetricSums, divisors: Normalizers
) -> Float[Array, ""]:
    """What a part of the batch adds to the loss of the global batch.

    Args:
        config: the objective.
        totals: of the part.
        divisors: :func:`normalizers` of the global batch.

    Returns:
        Nats; shares of all parts, and their gradients, add up to those of the global batch.

    Examples:
        >>> totals = {"loss/sft": WeightedSum(jnp.array(6.0), jnp.array(1.0))}
        >>> batch_of_three = Normalizers(pairs=jnp.array(3.0), sft=jnp.array(3.0))
        >>> float(loss_share(ObjectiveConfig(method="sft"), totals, batch_of_three))
        2.0
    """
    share = jnp.zeros_like(totals["loss/sft"].sum)
    if config.sft_weight > 0:
        share += config.sft_weight * _over(totals["loss/sft"], divisors.sft)
    if config.method != "sft":
        share += _over(totals[preference_loss_name(config)], divisors.pairs)
    return share


def non_finite(
    policy: Float[ArrayLike, "n k"], reference: Float[ArrayLike, "n k"] | None, batch: Batch
) -> Bool[Array, " n"]:
    """Pairs with a log-probability that is NaN or infinite; absent pairs never are.

    Args:
        policy: log-probabilities under the policy.
        reference: those under the reference, if there is one.
        batch: the pairs.

    Returns:
        One flag a pair.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> non_finite(jnp.array([[-1.0, jnp.nan]]), None, batch).tolist()
        [True]
    """
    sound = jnp.isfinite(jnp.asarray(policy)).all(axis=1)
    if reference is not None:
        sound &= jnp.isfinite(jnp.asarray(reference)).all(axis=1)
    return jnp.asarray(batch.present) & ~sound


def _over(reduction: WeightedSum, weight: Float[Array, ""]) -> Float[Array, ""]:
    return WeightedSum(reduction.sum, weight.astype(reduction.sum.dtype)).mean()
