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
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from llm.config import ObjectiveConfig
from llm.inference.score import PairScore
from llm.types import Batch, Role
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.reductions import WeightedSum, reduce_mean, reduce_sft
from rpo_theory.types import ArrayLike

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
) -> MetricSums:
    r"""Compute the losses and metrics of a part of a batch, as sums that are not divided yet.

    Args:
        config: the objective.
        policy: log-probabilities of the responses, summed over tokens, nats.
        reference: the same under the reference model; None leaves out the metrics that need it,
            which only the method ``"sft"`` allows.
        batch: the pairs; only ``present``, ``weights`` and ``lengths`` are used.

    Returns:
        Sums under ``loss/dpo`` (or the name of another method), ``loss/sft``, ``rewards/chosen``,
        ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``, ``logps/chosen``,
        ``logps/rejected`` and ``theory/adversarial_value``. Absent pairs add neither values nor
        gradients.

    Raises:
        ValueError: if the method needs a reference and ``reference`` is None.

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
    baseline = policy[:, _baseline_role(batch)]
    sft_loss = losses.sft(baseline, where=jnp.asarray(batch.present))
    sums = {
        "loss/sft": reduce_sft_loss(config, sft_loss, batch),
        "logps/chosen": _sum_over_pairs(policy[:, Role.CHOSEN], batch),
        "logps/rejected": _sum_over_pairs(policy[:, Role.REJECTED], batch),
    }
    if reference is not None:
        reference = jax.lax.stop_gradient(jnp.asarray(reference).astype(policy.dtype))
        return sums | _reference_sums(config, policy, reference, batch)
    if config.needs_reference:
        raise ValueError(
            f"`reference` must be given for method {config.method!r}, got None: pass reference "
            "log-probabilities with the batch, or a reference model"
        )
    return sums


def add_metric_sums(first: MetricSums, second: MetricSums) -> MetricSums:
    """Add the sums of two parts of a batch.

    Args:
        first: sums of one part.
        second: sums of the other part, under the same names.

    Returns:
        The sums of both parts together.
    """
    return jax.tree.map(jnp.add, first, second)


def finalize_metrics(config: ObjectiveConfig, sums: MetricSums) -> dict[str, Float[Array, ""]]:
    """Divide the sums of a whole batch by their weights.

    Args:
        config: the objective.
        sums: sums over the whole batch, see :func:`compute_metric_sums`.

    Returns:
        One number per name, and the objective as ``loss``.

    Examples:
        >>> sums = {"loss/sft": WeightedSum(jnp.array(6.0), jnp.array(3.0))}
        >>> sorted(finalize_metrics(ObjectiveConfig(method="sft"), sums))
        ['loss', 'loss/sft']
    """
    means = {name: weighted_sum.mean() for name, weighted_sum in sums.items()}
    loss = config.sft_weight * means["loss/sft"] if config.sft_weight > 0 else 0.0
    if config.method != "sft":
        loss += means[preference_loss_name(config)]
    return {"loss": jnp.asarray(loss)} | means


def preference_loss_name(config: ObjectiveConfig) -> str:
    """Return the metric name of the preference loss.

    Args:
        config: an objective with a preference loss, that is, any method but ``"sft"``.

    Returns:
        ``loss/dpo`` for RPO, whose preference loss is that of DPO; otherwise ``loss/`` and the
        method.

    Examples:
        >>> preference_loss_name(ObjectiveConfig(method="rpo"))
        'loss/dpo'
    """
    return "loss/dpo" if config.method == "rpo" else f"loss/{config.method}"


def reduce_sft_loss(
    config: ObjectiveConfig, per_response: Float[Array, "*n"], batch: Batch
) -> WeightedSum:
    """Reduce the SFT losses of the baseline responses as the objective asks for.

    Args:
        config: the objective; ``sft_reduction`` selects the reduction.
        per_response: negative log-probability of the baseline response of each pair, nats.
        batch: the pairs; absent pairs have no weight.

    Returns:
        The weighted sum; its mean is the SFT loss.

    Examples:
        >>> batch = Batch(None, None, np.array([[2, 1], [4, 1]]), np.ones(2, bool), np.arange(2))
        >>> config = ObjectiveConfig(sft_reduction="sequence_mean")
        >>> float(reduce_sft_loss(config, jnp.array([2.0, 8.0]), batch).mean())
        1.5
    """
    dtype = per_response.dtype
    return reduce_sft(
        per_response,
        jnp.asarray(batch.lengths)[..., _baseline_role(batch)].astype(dtype),
        reduction=config.sft_reduction,
        weights=present_pair_weights(batch, dtype),
        where=jnp.asarray(batch.present),
    )


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


def _preference_loss(
    config: ObjectiveConfig,
    policy: PairLogProbs,
    reference: PairLogProbs,
    where: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """Return the preference loss of the method, per pair."""
    match config.method:
        case "ipo":
            return losses.ipo(policy, reference, tau=config.tau, where=where)
        case "dpop":
            constants = {"beta": config.beta, "penalty": config.penalty}
            return losses.dpop(policy, reference, **constants, where=where)
        case "chi_po":
            constants = {"beta": config.beta, "reward_max": config.reward_max}
            return losses.chi_po(policy, reference, **constants, where=where)
        case _:
            constants = {"beta": config.beta, "label_smoothing": config.label_smoothing}
            return losses.dpo(policy, reference, **constants, where=where)


def _reference_sums(
    config: ObjectiveConfig,
    policy: Float[Array, "n k"],
    reference: Float[Array, "n k"],
    batch: Batch,
) -> MetricSums:
    """Return the sums that need the reference: preference loss, rewards, adversarial value."""
    where = jnp.asarray(batch.present)
    policy_pairs = PairLogProbs(policy[:, Role.CHOSEN], policy[:, Role.REJECTED])
    reference_pairs = PairLogProbs(reference[:, Role.CHOSEN], reference[:, Role.REJECTED])
    rewards = config.beta * (policy - reference)
    chosen, rejected = rewards[:, Role.CHOSEN], rewards[:, Role.REJECTED]
    dpo = losses.dpo(policy_pairs, reference_pairs, beta=config.beta, where=where)
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(policy.dtype),
        # F at the implicit reward, eq. 4.5: log Z cancels between its two terms.
        "theory/adversarial_value": dpo - config.eta * rewards[:, _baseline_role(batch)],
    }
    if config.method != "sft":
        loss = _preference_loss(config, policy_pairs, reference_pairs, where)
        per_pair[preference_loss_name(config)] = loss
    return {name: _sum_over_pairs(values, batch) for name, values in per_pair.items()}


def _sum_over_pairs(values: Float[Array, " n"], batch: Batch) -> WeightedSum:
    kept = jnp.where(jnp.asarray(batch.present), values, 0.0)
    return reduce_mean(kept, present_pair_weights(batch, values.dtype))


def _baseline_role(batch: Batch) -> int:
    """Return the role of the SFT term: the baseline if the batch has baseline responses."""
    return Role.BASELINE if batch.lengths.shape[-1] > Role.BASELINE else Role.CHOSEN
