r"""What is measured of a learned policy: its gap, its values, its divergence, and its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from bandits.environments.random import Instance
from bandits.methods.base import FitResult, reward_range
from rpo_theory.bounds import (
    complexity,
    corrected_modulus,
    covering_scale,
    printed_modulus,
    suboptimality_bound,
    tight_modulus,
    tuned_eta,
)
from rpo_theory.coverage import coverage_coefficient_batch
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded, log_covering_number


class BoundInputs(NamedTuple):
    r"""What a draw says before anything is learned from it, per instance.

    Attributes:
        coverage: :math:`C` of the comparator against the environment's :math:`\pi_{base}`.
        comparator_kl: :math:`E\,KL(\pi\|\pi_{ref})` of the comparator, nats.
        reward_max: :math:`R_{max}`, the widest difference of rewards at a prompt.
        complexity: :math:`\iota` of the class at the theorem's covering scale.
    """

    coverage: Float[np.ndarray, " B"]
    comparator_kl: Float[np.ndarray, " B"]
    reward_max: Float[np.ndarray, " B"]
    complexity: Float[np.ndarray, " B"]


def compute_bound_inputs(
    instance: Instance, comparisons: Float[np.ndarray, " B"], delta: float
) -> BoundInputs:
    r"""Measure what the bounds are made of.

    Args:
        instance: with a leading batch axis.
        comparisons: :math:`N` of each.
        delta: probability that the guarantee may fail, less than 1/e.

    Returns:
        The setting.
    """
    problem, reward_class = instance.problem, instance.reward_class
    if isinstance(reward_class, Unbounded):
        raise ValueError("`reward_class` must be compact: without a range no bound is finite")
    law = {
        "context_weights": problem.context_weights,
        "pair_distribution": instance.pair_distribution,
    }
    coefficients = coverage_coefficient_batch(
        reward_class,
        true_reward=instance.true_reward,
        comparator=instance.comparator,
        baseline=problem.baseline_policy,
        **law,
    )
    width = reward_range(reward_class)
    n_cells = int(np.prod(np.shape(instance.true_reward)[1:]))
    with jax.enable_x64(True):
        iota = _complexities(reward_class, n_cells, width, comparisons, delta)
    return BoundInputs(
        coverage=np.asarray(coefficients),
        comparator_kl=kl_to_reference(np.asarray(instance.comparator), instance),
        reward_max=width,
        complexity=iota,
    )


def eta_by_rule(
    setting: BoundInputs, comparisons: Float[np.ndarray, " B"], rule: Literal["theorem", "tight"]
) -> Float[np.ndarray, " B"]:
    r"""The theorem's weight of the adversary, that knows no coefficient.

    Args:
        setting: what the draw says.
        comparisons: :math:`N`.
        rule: with the constant that is printed, or with the sharpest.

    Returns:
        :math:`\eta`, nats per unit of reward.

    References:
        `liu:24`, Theorem 5.3; :func:`rpo_theory.bounds.tuned_eta`.
    """
    modulus = printed_modulus if rule == "theorem" else tight_modulus
    with jax.enable_x64(True):
        eta = tuned_eta(
            modulus(setting.reward_max), n_pairs=comparisons, complexity=setting.complexity
        )
        return np.asarray(eta)


def measure_policy(learned: FitResult, instance: Instance) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Measure learned policies against the truth.

    Args:
        learned: a batch of answers.
        instance: the instances that they answer.

    Returns:
        ``gap`` to the comparator, ``gap_baseline`` and ``gap_reference`` to those policies,
        ``true_value`` and ``proxy_value``, :math:`J(\hat\pi)-J(\pi_{base})` under
        :math:`r^\star` and :math:`\hat r` (units of reward; nan where a method has no reward), and
        ``kl`` to the reference (nats).
    """
    weights, truth = instance.problem.context_weights, np.asarray(instance.true_reward)
    baseline = np.asarray(instance.problem.baseline_policy)

    def ahead(policy: np.ndarray, other: np.ndarray, reward: np.ndarray) -> np.ndarray:
        # A response that neither policy gives may have a reward of minus infinity.
        counted = np.where(policy == other, 0.0, reward)
        return np.einsum("bx,bxa,bxa->b", weights, policy - other, counted)

    answer = learned.policy
    return {
        "gap": ahead(np.asarray(instance.comparator), answer, truth),
        "gap_baseline": ahead(baseline, answer, truth),
        "gap_reference": ahead(np.asarray(instance.problem.reference_policy), answer, truth),
        "true_value": ahead(answer, baseline, truth),
        "proxy_value": ahead(answer, baseline, learned.reward),
        "kl": kl_to_reference(answer, instance),
    }


def kl_to_reference(
    policy: Float[np.ndarray, "B x a"], instance: Instance
) -> Float[np.ndarray, " B"]:
    r"""Mean divergence of policies from the reference, :math:`E_{d_0}KL(\pi\|\pi_{ref})`.

    Args:
        policy: probabilities.
        instance: whose reference and prompts.

    Returns:
        Nats; ``inf`` where a policy leaves the support of the reference.
    """
    policy, reference = np.asarray(policy), np.asarray(instance.problem.reference_policy)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * np.log(policy / reference), 0.0)
    # Roundoff may leave minus 1e-17.
    divergence = np.einsum("bx,bxa->b", instance.problem.context_weights, terms)
    return np.maximum(divergence, 0.0)


def gap_bounds(
    setting: BoundInputs,
    *,
    comparisons: Float[np.ndarray, " B"],
    eta: Float[np.ndarray, " B"],
    beta: Float[np.ndarray, " B"],
) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Bounds on the gap of RPO at its own weights, and the terms of the corrected one.

    Args:
        setting: what the draw says.
        comparisons: :math:`N`.
        eta: weights of the adversary; at 0 nothing is promised.
        beta: weights of the KL term.

    Returns:
        ``bound`` (corrected modulus), its terms ``bound_coverage``, ``bound_complexity`` and
        ``bound_kl``, and the same inequality with the other moduli, ``bound_tight`` and
        ``bound_printed``; units of reward.

    References:
        `liu:24`, eq. A.44; :mod:`rpo_theory.bounds`.
    """
    known = {
        "n_pairs": comparisons,
        "complexity": setting.complexity,
        "eta": np.where(eta > 0, eta, np.nan),
        "beta": beta,
        "coverage": setting.coverage,
        "kl": setting.comparator_kl,
    }

    def bound(modulus: Callable[..., Array], **changed: np.ndarray) -> Float[np.ndarray, " B"]:
        terms = {**known, **changed}
        with jax.enable_x64(True):
            return np.asarray(suboptimality_bound(modulus(setting.reward_max), **terms))

    promised = bound(corrected_modulus)
    bias = bound(corrected_modulus, complexity=0.0 * eta, kl=0.0 * eta)
    divergence = beta * setting.comparator_kl
    columns = {
        "bound": promised,
        "bound_tight": bound(tight_modulus),
        "bound_printed": bound(printed_modulus),
        "bound_coverage": bias,
        "bound_complexity": promised - bias - divergence,
        "bound_kl": divergence,
    }
    return {name: np.where(eta > 0, column, np.inf) for name, column in columns.items()}


def _complexities(
    reward_class: TabularBox | LinearBall | FiniteClass,
    n_cells: int,
    width: Float[np.ndarray, " B"],
    comparisons: Float[np.ndarray, " B"],
    delta: float,
) -> Float[np.ndarray, " B"]:
    """Iota of every instance; few of a batch differ, and covers are counted once for each."""
    keys = [np.asarray(covering_scale(comparisons, width))]
    if isinstance(reward_class, FiniteClass):
        keys += [np.full(len(width), float(np.shape(reward_class.rewards)[1]))]
    elif isinstance(reward_class, LinearBall):
        longest = np.linalg.norm(reward_class.features, axis=-1).max(axis=(1, 2))
        keys += [longest, np.asarray(reward_class.radius, np.float64)]
    else:
        keys += [width]
    different, which = np.unique(np.stack(keys), axis=1, return_inverse=True)
    counts = [_log_covering(reward_class, key, n_cells) for key in different.T]
    return np.asarray(complexity(np.asarray(counts), delta))[which.ravel()]


def _log_covering(
    reward_class: TabularBox | LinearBall | FiniteClass, key: Float[np.ndarray, " k"], n_cells: int
) -> float:
    scale, *rest = key
    match reward_class:
        case FiniteClass():
            one = FiniteClass(np.zeros((int(rest[0]), 1, 1)))
        case LinearBall():
            longest, radius = rest
            one = LinearBall(np.full((1, 1, 1), longest), np.array(radius))
            n_cells = np.shape(reward_class.features)[-1]
        case TabularBox():
            one = TabularBox(np.array(rest[0]))
    return log_covering_number(one, scale, n_cells)
