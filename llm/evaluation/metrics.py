r"""Metrics of a policy on preference pairs: losses, implicit rewards, margins and accuracies.

Training computes them as sums over parts of a batch (:func:`compute_metric_sums`), adds the sums of
all parts (:func:`add_metric_sums`) and divides once (:func:`finalize_metrics`), so that splitting a
batch changes no metric. :func:`preference_metrics` computes the same metrics from the scores of a
whole data set, with confidence intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from llm.config import ObjectiveConfig, ObjectiveConstants, PairInputs
from llm.config.preference_losses import kto_reference_point
from llm.inference.score import PairScore
from llm.types import Batch, Role
from rpo_theory.reductions import WeightedSum, reduce_mean
from rpo_theory.types import ArrayLike

from .pair_losses import (
    baseline_values,
    expected_loss,
    ordered_share,
    pair_inputs,
    preference_sums,
    rejected_values,
    sft_sum,
    sum_over_pairs,
)
from .win_rates import bootstrap_mean_interval, compare_rewards, exact_rate_interval


def preference_metrics(
    config: ObjectiveConfig,
    policy: Sequence[PairScore],
    reference: Sequence[PairScore],
    *,
    seed: int = 0,
) -> dict[str, float]:
    r"""Compute the metrics of a policy on a scored data set.

    Args:
        config: the objective; its :math:`\beta` scales the implicit rewards
            :math:`\beta\log(\pi/\pi_{ref})`.
        policy: scores of the rows under the policy.
        reference: scores of the same rows under the reference.
        seed: seed of the bootstrap of the margins.

    Returns:
        Metrics by name: those of :func:`finalize_metrics`; ``rewards/win_rate``, the share of
        pairs whose chosen response has the larger reward, where a tie counts one half, with the
        counts ``rewards/wins``, ``rewards/ties`` and ``rewards/losses``; the ends of 95 %
        intervals as ``NAME_lower`` and ``NAME_upper``, bootstrapped for ``rewards/margins`` and of
        :func:`exact_rate_interval` for ``rewards/accuracies`` and ``rewards/win_rate``;
        those of :func:`log_ratio_quantiles` for the chosen responses; and the number of
        ``pairs``. A tie is not accurate: ``rewards/accuracies`` is the strict share, as in TRL.

    Raises:
        ValueError: if there are no rows, the two sequences differ in rows or token counts, or a
            metric is not finite; the message names the metric.

    Examples:
        >>> policy, reference = [PairScore(0, -1.0, -3.0, 2, 2)], [PairScore(0, -2.0, -2.0, 2, 2)]
        >>> preference_metrics(ObjectiveConfig(beta=0.5), policy, reference)["rewards/margins"]
        1.0
    """
    if not policy:
        raise ValueError("`policy` must have at least one score, got none")
    keys, reference_keys = (
        [(score.row, *score[3:]) for score in scores] for scores in (policy, reference)
    )
    if keys != reference_keys:
        raise ValueError(
            "`policy` and `reference` must be scores of the same rows and tokens: the two models "
            "need one tokenizer and one chat template"
        )
    log_probs = np.array([score[1:3] for score in policy])
    reference_log_probs = np.array([score[1:3] for score in reference])
    rows = np.array([score.row for score in policy])
    lengths = np.array([score[3:] for score in policy])
    no_tokens: Any = None  # the tokens have been scored already
    batch = Batch(no_tokens, no_tokens, lengths, np.ones(len(rows), bool), rows)
    sums = compute_metric_sums(
        config, jnp.asarray(log_probs), jnp.asarray(reference_log_probs), batch
    )
    measured = {name: float(value) for name, value in finalize_metrics(config, sums).items()}
    for name, value in measured.items():
        if not math.isfinite(value):
            raise ValueError(
                f"metric `{name}` is {value}, which is not finite: `beta` {config.beta:g} or `eta` "
                f"{config.eta:g} is too large for these rewards"
            )
    rewards = config.beta * (log_probs - reference_log_probs)
    margins = rewards[:, Role.CHOSEN] - rewards[:, Role.REJECTED]
    # Ties are decided in float64: float32 rounds small margins to 0.
    compared = compare_rewards(rewards[:, Role.CHOSEN], rewards[:, Role.REJECTED])
    measured |= {
        "rewards/accuracies": compared.wins / len(rows),
        "rewards/win_rate": compared.win_rate,
        "rewards/wins": compared.wins,
        "rewards/ties": compared.ties,
        "rewards/losses": compared.losses,
    }
    intervals = {
        "margins": bootstrap_mean_interval(margins, seed=seed),
        "accuracies": exact_rate_interval(float(compared.wins), len(rows)),
        "win_rate": (compared.lower, compared.upper),
    }
    for name, (lower, upper) in intervals.items():
        measured |= {f"rewards/{name}_lower": lower, f"rewards/{name}_upper": upper}
    measured |= log_ratio_quantiles(log_probs[:, Role.CHOSEN], reference_log_probs[:, Role.CHOSEN])
    return measured | {"pairs": len(rows)}


MetricSums = dict[str, WeightedSum]
"""Weighted sums by metric name. The sums of the parts of a batch are added, then divided once."""


def compute_metric_sums(
    config: ObjectiveConfig,
    policy: Float[ArrayLike, "n k"],
    reference: Float[ArrayLike, "n k"] | None,
    batch: Batch,
    *,
    constants: ObjectiveConstants | None = None,
    log_sum_squares: Float[ArrayLike, "n k"] | None = None,
) -> MetricSums:
    r"""Compute the losses and metrics of a part of a batch, as sums that are not divided yet.

    Args:
        config: the objective.
        policy: log-probabilities of the responses, summed over tokens, nats.
        reference: the same under the reference model; None leaves out the metrics that need it,
            which objectives without a reference allow.
        batch: the pairs; rows of tokens and ``reference`` are not used.
        constants: constants of the step; None for those of the configuration.
        log_sum_squares: token statistic of the responses, for losses that take it.

    Returns:
        Sums under ``loss/NAME`` for every preference loss, ``loss/sft``, ``rewards/chosen``,
        ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``, ``logps/chosen``,
        ``logps/rejected`` and ``theory/adversarial_value``. Absent pairs add neither values nor
        gradients. Of unpaired rows the desirable ones are ``chosen`` and the others ``rejected``,
        and ``kl`` is the reference point. Of ranked rows the best response is ``chosen``, and the
        mean over the others ``rejected``; the accuracy of a row is the share of its pairs in order.

    Raises:
        ValueError: if the method needs a reference and ``reference`` is None, or a loss of the
            whole batch meets weights or soft labels.

    References:
        `liu:24`, eqs. 4.5 and 4.8.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> log_probs = jnp.array([[-1.0, -1.0]])
        >>> config = ObjectiveConfig(beta=0.5, eta=1.0)
        >>> sums = compute_metric_sums(config, log_probs, log_probs, batch)
        >>> [round(float(sums[name].mean()), 4) for name in ("loss/dpo", "loss/sft")]
        [0.6931, 1.0]
    """
    policy = jnp.asarray(policy)
    constants = config.constants if constants is None else constants
    if reference is None and config.needs_reference:
        raise ValueError(
            f"`reference` must be given for method {config.method!r}, got None: pass reference "
            "log-probabilities with the batch, or a reference model"
        )
    if reference is not None:
        reference = jax.lax.stop_gradient(jnp.asarray(reference).astype(policy.dtype))
    squares = None if log_sum_squares is None else jnp.asarray(log_sum_squares)
    inputs = pair_inputs(policy, reference, batch, squares)
    if batch.desirable is not None:
        losses_only = preference_sums(config, constants, inputs, batch)
        return losses_only | _unpaired_sums(config, constants, inputs, policy, batch)
    sums = {
        "loss/sft": sft_sum(config, policy, batch),
        "logps/chosen": sum_over_pairs(policy[:, Role.CHOSEN], batch),
        "logps/rejected": sum_over_pairs(rejected_values(policy, batch), batch),
    } | preference_sums(config, constants, inputs, batch)
    if reference is None:
        return sums
    rewards = jnp.asarray(constants.beta * (policy - reference))
    return sums | _reward_sums(constants, inputs, rewards, batch)


def add_metric_sums(first: MetricSums, second: MetricSums) -> MetricSums:
    """Add the sums of two parts of a batch.

    Args:
        first: sums of one part.
        second: sums of the other part, under the same names.

    Returns:
        The sums of both parts together.
    """
    return jax.tree.map(jnp.add, first, second)


def finalize_metrics(
    config: ObjectiveConfig, sums: MetricSums, constants: ObjectiveConstants | None = None
) -> dict[str, Float[Array, ""]]:
    """Divide the sums of a whole batch by their weights.

    Args:
        config: the objective.
        sums: sums over the whole batch, see :func:`compute_metric_sums`.
        constants: constants of the step; None for those of the configuration.

    Returns:
        One number per name, and the objective as ``loss``.

    Examples:
        >>> sums = {"loss/sft": WeightedSum(jnp.array(6.0), jnp.array(3.0))}
        >>> sorted(finalize_metrics(ObjectiveConfig(method="sft"), sums))
        ['loss', 'loss/sft']
    """
    means = {name: weighted_sum.mean() for name, weighted_sum in sums.items()}
    if "rewards/chosen" in means and "rewards/margins" not in means:  # of unpaired rows
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    weight = config.sft_weight_at(config.constants if constants is None else constants)
    loss = weight * means["loss/sft"] if config.trains_sft else 0.0
    for term in config.terms:
        loss += term.weight * means[term.metric]
    return {"loss": jnp.asarray(loss)} | means


def log_ratio_quantiles(
    policy: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"]
) -> dict[str, float]:
    r"""Compute quantiles of the log-ratio :math:`\log(\pi/\pi_{ref})` of the chosen responses.

    By identity S3 the RPO policy stays close to the distribution of the chosen responses. A
    log-ratio far below 0 shows displacement: training made a chosen response much less likely.

    Args:
        policy: log-probabilities of the chosen responses under the policy, nats.
        reference: the same under the reference, nats.

    Returns:
        ``theory/log_ratio_p05``, ``theory/log_ratio_median`` and ``theory/log_ratio_p95``, nats.

    Examples:
        >>> log_ratio_quantiles(np.array([-1.0]), np.array([-2.0]))["theory/log_ratio_median"]
        1.0
    """
    low, middle, high = np.quantile(np.asarray(policy) - np.asarray(reference), [0.05, 0.5, 0.95])
    return {
        "theory/log_ratio_p05": float(low),
        "theory/log_ratio_median": float(middle),
        "theory/log_ratio_p95": float(high),
    }


def _reward_sums(
    constants: ObjectiveConstants,
    inputs: PairInputs,
    rewards: Float[Array, "n k"],
    batch: Batch,
) -> MetricSums:
    """Return the sums of the implicit rewards and of the adversarial value."""
    chosen, rejected = rewards[:, Role.CHOSEN], rejected_values(rewards, batch)
    # The negative log-likelihood of a pair, in expectation over its label, or of a ranking.
    likelihood = _DPO if batch.ranked is None else _PLACKETT_LUCE
    nll = expected_loss(likelihood, constants, inputs, batch)
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": ordered_share(rewards, batch),
        # F at the implicit reward, eq. 4.5: log Z cancels between its two terms.
        "theory/adversarial_value": nll - constants.eta * baseline_values(rewards, batch),
    }
    return {name: sum_over_pairs(values, batch) for name, values in per_pair.items()}


def _unpaired_sums(
    config: ObjectiveConfig,
    constants: ObjectiveConstants,
    inputs: PairInputs,
    policy: Float[Array, "n k"],
    batch: Batch,
) -> MetricSums:
    """Return the sums of the metrics of unpaired rows, under TRL's names."""
    dtype, present = policy.dtype, jnp.asarray(batch.present)
    desirable = jnp.asarray(batch.desirable)
    log_probs = inputs.policy.chosen
    rewards = jnp.asarray(constants.beta * (log_probs - inputs.reference.chosen))
    point = jnp.full(present.shape, kto_reference_point(inputs))
    sums = {"loss/sft": sft_sum(config, policy, batch), "kl": sum_over_pairs(point, batch)}
    for name, values in (("logps", log_probs), ("rewards", rewards)):
        values = jnp.where(present, values, 0.0)
        for side, kept in (("chosen", desirable), ("rejected", ~desirable)):
            sums[f"{name}/{side}"] = reduce_mean(values, (present & kept).astype(dtype))
    return sums


_DPO = ObjectiveConfig(method="dpo").terms[0]
_PLACKETT_LUCE = ObjectiveConfig(method="plackett_luce").terms[0]
