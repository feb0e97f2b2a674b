r"""How good a policy is: on preference data against its reference, and against another model.

What is measured on preference data is what training logs (:mod:`llm.train.objective`), over a whole data
set at once. A win rate is over prompts, a tie half a win. Intervals are bootstrapped: prompts are
drawn again with replacement.
"""

from __future__ import annotations

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

from .win_rates import bootstrap_mean_interval


def preference_metrics(
    config: ObjectiveConfig,
    policy: Sequence[PairScore],
    reference: Sequence[PairScore],
    *,
    seed: int = 0,
) -> dict[str, float]:
    r"""Rewards, margins, accuracy, losses and theory of a policy on a data set.

    Args:
        config: the objective; :math:`\beta` scales the rewards
            :math:`\beta\log(\pi/\pi_{ref})`.
        policy: scores of the rows.
        reference: scores of the same rows under the reference.
        seed: of the bootstrap.

    Returns:
        The metrics of :func:`llm.evaluation.metrics.finalize_metrics`, the ends of 95 % intervals as
        ``rewards/accuracies_lower`` and so on, also of ``rewards/margins``, quantiles of the chosen
        responses' log-ratio, and the number of ``pairs``.

    Raises:
        ValueError: no rows, or other rows or token counts under the reference.

    Examples:
        >>> first, second = [PairScore(0, -1.0, -3.0, 2, 2)], [PairScore(0, -2.0, -2.0, 2, 2)]
        >>> preference_metrics(ObjectiveConfig(beta=0.5), first, second)["rewards/margins"]
        1.0
    """
    if not policy:
        raise ValueError("there must be rows to measure, got none")
    if [(one.row, *one[3:]) for one in policy] != [(one.row, *one[3:]) for one in reference]:
        raise ValueError(
            "`policy` and `reference` must be scores of the same rows and tokens: the two models "
            "need one tokenizer and one chat template"
        )
    log_probs = np.array([one[1:3] for one in policy])
    baseline = np.array([one[1:3] for one in reference])
    rows = np.array([one.row for one in policy])
    absent: Any = None  # tokens have been scored already
    lengths = np.array([one[3:] for one in policy])
    batch = Batch(absent, absent, lengths, np.ones(len(rows), bool), rows)
    totals = compute_metric_sums(config, jnp.asarray(log_probs), jnp.asarray(baseline), batch)
    measured = {name: float(value) for name, value in finalize_metrics(config, totals).items()}
    rewards = config.beta * (log_probs - baseline)
    margins = rewards[:, 0] - rewards[:, 1]
    for name, values in (("margins", margins), ("accuracies", (margins > 0).astype(float))):
        lower, upper = bootstrap_mean_interval(values, seed=seed)
        measured |= {f"rewards/{name}_lower": lower, f"rewards/{name}_upper": upper}
    return measured | log_ratio_quantiles(log_probs[:, 0], baseline[:, 0]) | {"pairs": len(rows)}


MetricSums = dict[str, WeightedSum]
"""Sums and weights by metric name: those of parts of a batch add up, and are divided once."""


def compute_metric_sums(
    config: ObjectiveConfig,
    policy: Float[ArrayLike, "n k"],
    reference: Float[ArrayLike, "n k"] | None,
    batch: Batch,
) -> MetricSums:
    r"""Every loss and metric of a part of a batch, as totals that add up.

    Args:
        config: the objective.
        policy: log-probabilities of the responses, summed over tokens, nats.
        reference: those under the reference; None (for ``"sft"`` only) leaves out what needs them.
        batch: the pairs: ``present``, ``weights`` and ``lengths`` count.

    Returns:
        MetricSums under ``loss/dpo`` (or the method's own name), ``loss/sft``, ``rewards/chosen``,
        ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``, ``logps/chosen``,
        ``logps/rejected`` and ``theory/adversarial_value``. Absent pairs have neither value nor
        gradient.

    Raises:
        ValueError: if the method needs a reference and there is none.

    References:
        `liu:24`, eqs. 4.5 and 4.8.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> same = jnp.array([[-1.0, -1.0]])
        >>> totals = compute_metric_sums(ObjectiveConfig(beta=0.5, eta=1.0), same, same, batch)
        >>> [round(float(totals[name].mean()), 4) for name in ("loss/dpo", "loss/sft")]
        [0.6931, 1.0]
    """
    policy = jnp.asarray(policy)
    base = policy[:, _baseline_role(batch)]
    totals = {
        "loss/sft": reduce_sft_loss(
            config, losses.sft(base, where=jnp.asarray(batch.present)), batch
        ),
        "logps/chosen": _mean_over_pairs(policy[:, Role.CHOSEN], batch),
        "logps/rejected": _mean_over_pairs(policy[:, Role.REJECTED], batch),
    }
    if reference is not None:
        reference = jax.lax.stop_gradient(jnp.asarray(reference).astype(policy.dtype))
        return totals | _against_reference(config, policy, reference, batch)
    if config.needs_reference:
        raise ValueError(
            f"`reference` must be given for method {config.method!r}, got None: pass reference "
            "log-probabilities with the batch, or a reference model"
        )
    return totals


def add_metric_sums(first: MetricSums, second: MetricSums) -> MetricSums:
    """MetricSums of two parts together."""
    return jax.tree.map(jnp.add, first, second)


def finalize_metrics(config: ObjectiveConfig, totals: MetricSums) -> dict[str, Float[Array, ""]]:
    """Divide the totals of the global batch: one number a name, ``loss`` among them.

    Args:
        config: the objective.
        totals: of the global batch.

    Returns:
        The metrics of :func:`compute_metric_sums` under TRL's names, and ``loss``.

    Examples:
        >>> totals = {"loss/sft": WeightedSum(jnp.array(6.0), jnp.array(3.0))}
        >>> sorted(finalize_metrics(ObjectiveConfig(method="sft"), totals))
        ['loss', 'loss/sft']
    """
    means = {name: reduction.mean() for name, reduction in totals.items()}
    loss = config.sft_weight * means["loss/sft"] if config.sft_weight > 0 else 0.0
    if config.method != "sft":
        loss += means[preference_loss_name(config)]
    return {"loss": jnp.asarray(loss)} | means


def preference_loss_name(config: ObjectiveConfig) -> str:
    return "loss/dpo" if config.method == "rpo" else f"loss/{config.method}"


def _preference_loss(
    config: ObjectiveConfig,
    policy: PairLogProbs,
    reference: PairLogProbs,
    where: Bool[Array, " n"],
) -> Float[Array, " n"]:
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


def _against_reference(
    config: ObjectiveConfig,
    policy: Float[Array, "n k"],
    reference: Float[Array, "n k"],
    batch: Batch,
) -> MetricSums:
    """What needs the reference: preference loss, implicit rewards, adversarial value."""
    where = jnp.asarray(batch.present)
    own = PairLogProbs(policy[:, Role.CHOSEN], policy[:, Role.REJECTED])
    theirs = PairLogProbs(reference[:, Role.CHOSEN], reference[:, Role.REJECTED])
    rewards = config.beta * (policy - reference)
    chosen, rejected = rewards[:, Role.CHOSEN], rewards[:, Role.REJECTED]
    dpo = losses.dpo(own, theirs, beta=config.beta, where=where)
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(policy.dtype),
        # F at the implicit reward, eq. 4.5: log Z has cancelled from both terms.
        "theory/adversarial_value": dpo - config.eta * rewards[:, _baseline_role(batch)],
    }
    if config.method != "sft":
        per_pair[preference_loss_name(config)] = _preference_loss(config, own, theirs, where)
    return {name: _mean_over_pairs(values, batch) for name, values in per_pair.items()}


def _mean_over_pairs(values: Float[Array, " n"], batch: Batch) -> WeightedSum:
    kept = jnp.where(jnp.asarray(batch.present), values, 0.0)
    return reduce_mean(kept, present_pair_weights(batch, values.dtype))


def reduce_sft_loss(
    config: ObjectiveConfig, per_response: Float[Array, "*n"], batch: Batch
) -> WeightedSum:
    dtype = per_response.dtype
    return reduce_sft(
        per_response,
        jnp.asarray(batch.lengths)[..., _baseline_role(batch)].astype(dtype),
        reduction=config.sft_reduction,
        weights=present_pair_weights(batch, dtype),
        where=jnp.asarray(batch.present),
    )


def present_pair_weights(batch: Batch, dtype: DTypeLike) -> Float[Array, "*n"]:
    present = jnp.asarray(batch.present)
    if batch.weights is None:
        return present.astype(dtype)
    return jnp.where(present, jnp.asarray(batch.weights).astype(dtype), 0.0)


def _baseline_role(batch: Batch) -> int:
    """The response of the SFT term: a baseline of its own, or the chosen one."""
    return Role.BASELINE if batch.lengths.shape[-1] > Role.BASELINE else Role.CHOSEN


def log_ratio_quantiles(
    policy: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"]
) -> dict[str, float]:
    r"""Quantiles of the log-ratio :math:`\log(\pi/\pi_{ref})` of the chosen responses.

    By identity S3 the RPO policy does not go far from the law of the chosen responses; a ratio far
    below one on them is what displacement looks like row by row.

    Args:
        policy: log-probabilities of the chosen responses, nats.
        reference: those under the reference.

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
