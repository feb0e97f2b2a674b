r"""Metrics of fitted policies: suboptimality gap, values, KL divergence, and bounds on the gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from bandits.environments.base import Instance
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
from rpo_theory.minimax import Kernel
from rpo_theory.rewards import RewardClass, is_compact, log_covering_number

MEMBER_TOLERANCE = 1e-6
"""Accepted relative distance of the true reward from its class: rounding to seven digits."""


class BoundInputs(NamedTuple):
    r"""Quantities of an instance that the bounds on the gap depend on, besides the weights.

    Attributes:
        coverage: coverage coefficient :math:`C` of the comparator, measured against the
            environment's :math:`\pi_{base}`, shape ``[B]``; NaN if the true reward is not in the
            class.
        comparator_kl: :math:`E\,KL(\pi\|\pi_{ref})` of the comparator, nats, shape ``[B]``.
        reward_max: :math:`R_{max}`, largest difference of rewards in a context, shape ``[B]``.
        complexity: :math:`\iota` of the reward class at the covering scale of the theorem, shape
            ``[B]``.
    """

    coverage: Float[np.ndarray, " B"]
    comparator_kl: Float[np.ndarray, " B"]
    reward_max: Float[np.ndarray, " B"]
    complexity: Float[np.ndarray, " B"]


def compute_bound_inputs(
    instance: Instance,
    comparisons: Float[np.ndarray, " B"],
    delta: float,
    kernel: Kernel = "jax",
) -> BoundInputs:
    r"""Compute the quantities that the bounds on the gap depend on.

    Args:
        instance: instances with a leading batch axis.
        comparisons: :math:`N` of each instance.
        delta: probability with which the bound may fail, less than 1/e.
        kernel: compiled code of the coverage coefficient, see
            :func:`rpo_theory.coverage.coverage_coefficient_batch`.

    Returns:
        One value of each quantity per instance.

    Raises:
        ValueError: if the reward class is unbounded.

    References:
        `liu:24`, Assumption 5.2 and Theorem 5.3.
    """
    problem, reward_class = instance.problem, instance.reward_class
    truth = np.asarray(instance.true_reward)
    if not is_compact(reward_class):
        raise ValueError(
            "`reward_class` must be compact, because the bounds need a finite reward range"
        )
    member = is_member(instance)
    coefficients = coverage_coefficient_batch(
        reward_class,
        true_reward=np.where(member[:, None, None], truth, _projected(reward_class, truth)),
        comparator=instance.comparator,
        baseline=problem.baseline_policy,
        context_weights=problem.context_weights,
        pair_distribution=instance.pair_distribution,
        kernel=kernel,
    )
    reward_max = np.broadcast_to(reward_range(reward_class), np.shape(comparisons))
    shape = np.shape(instance.true_reward)[1:]
    with jax.enable_x64(True):
        iota = _complexities(reward_class, shape, reward_max, comparisons, delta)
    return BoundInputs(
        coverage=np.where(member, coefficients, np.nan),
        comparator_kl=kl_to_reference(np.asarray(instance.comparator), instance),
        reward_max=reward_max,
        complexity=iota,
    )


def is_member(instance: Instance) -> Bool[np.ndarray, " B"]:
    """Return whether the true reward of each instance is in its class, as Assumption 5.1 needs.

    Args:
        instance: instances with a leading batch axis.
    """
    truth = np.asarray(instance.true_reward)
    misfit = np.abs(_projected(instance.reward_class, truth) - truth).max(axis=(1, 2))
    return misfit <= MEMBER_TOLERANCE * (1.0 + np.abs(truth).max(axis=(1, 2)))


def _projected(reward_class: RewardClass, truth: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, reward_class)
        project = jax.vmap(lambda single, table: single.project(table), in_axes=(axes, 0))
        return np.asarray(project(reward_class, truth))


def eta_by_rule(
    inputs: BoundInputs, comparisons: Float[np.ndarray, " B"], rule: Literal["theorem", "tight"]
) -> Float[np.ndarray, " B"]:
    r"""Compute the weight of the adversary by the formula of Theorem 5.3.

    The formula does not depend on the coverage coefficient, which is unknown in practice.

    Args:
        inputs: complexity and reward range of the instances.
        comparisons: :math:`N` of each instance.
        rule: ``theorem`` uses the constant of the paper, ``tight`` the sharpest one.

    Returns:
        :math:`\eta` of each instance, nats per unit of reward.

    References:
        `liu:24`, Theorem 5.3; :func:`rpo_theory.bounds.tuned_eta`.
    """
    modulus = printed_modulus if rule == "theorem" else tight_modulus
    with jax.enable_x64(True):
        eta = tuned_eta(
            modulus(inputs.reward_max), n_pairs=comparisons, complexity=inputs.complexity
        )
        return np.asarray(eta)


def measure_policy(result: FitResult, instance: Instance) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Measure fitted policies under the true reward.

    Args:
        result: a batch of fits.
        instance: the instances that the policies were fitted to, in the same order.

    Returns:
        Columns by name, one value per instance. ``gap`` is :math:`J(\pi)-J(\hat\pi)` for the
        comparator :math:`\pi`; ``gap_baseline`` and ``gap_reference`` are the same for
        :math:`\pi_{base}` and :math:`\pi_{ref}`. ``true_value`` and ``proxy_value`` are
        :math:`J(\hat\pi)-J(\pi_{base})` under :math:`r^\star` and under :math:`\hat r`, in units
        of reward; ``proxy_value`` is nan for a method without a reward. ``kl`` is the divergence
        from :math:`\pi_{ref}`, nats.
    """
    weights, truth = instance.problem.context_weights, np.asarray(instance.true_reward)
    baseline = np.asarray(instance.problem.baseline_policy)

    def advantage(policy: np.ndarray, other: np.ndarray, reward: np.ndarray) -> np.ndarray:
        # A response with probability 0 in both policies may have a reward of minus infinity.
        finite = np.where(policy == other, 0.0, reward)
        return np.einsum("bx,bxa,bxa->b", weights, policy - other, finite)

    fitted = result.policy
    return {
        "gap": advantage(np.asarray(instance.comparator), fitted, truth),
        "gap_baseline": advantage(baseline, fitted, truth),
        "gap_reference": advantage(np.asarray(instance.problem.reference_policy), fitted, truth),
        "true_value": advantage(fitted, baseline, truth),
        "proxy_value": advantage(fitted, baseline, result.reward),
        "kl": kl_to_reference(fitted, instance),
    }


def kl_to_reference(
    policy: Float[np.ndarray, "B x a"], instance: Instance
) -> Float[np.ndarray, " B"]:
    r"""Compute the mean KL divergence from the reference, :math:`E_{d_0}KL(\pi\|\pi_{ref})`.

    Args:
        policy: probabilities of the responses in every context.
        instance: instances with the reference policies and the context weights.

    Returns:
        Divergence of each policy, nats; ``inf`` if a policy leaves the support of the reference.
    """
    policy, reference = np.asarray(policy), np.asarray(instance.problem.reference_policy)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * np.log(policy / reference), 0.0)
    # Roundoff may give -1e-17.
    divergence = np.einsum("bx,bxa->b", instance.problem.context_weights, terms)
    return np.maximum(divergence, 0.0)


def gap_bounds(
    inputs: BoundInputs,
    *,
    comparisons: Float[np.ndarray, " B"],
    eta: Float[np.ndarray, " B"],
    beta: Float[np.ndarray, " B"],
    valid: Bool[np.ndarray, " B"],
) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Compute bounds on the gap of RPO at its weights, and the terms of the corrected bound.

    Args:
        inputs: the quantities of the instances that the bounds depend on.
        comparisons: :math:`N` of each instance.
        eta: weights of the adversary; the bounds are infinite at 0.
        beta: weights of the KL term.
        valid: whether Assumption 5.1 holds: labels follow the Bradley-Terry model of a true reward
            in the class.

    Returns:
        Columns by name, units of reward: ``bound`` with the corrected modulus; its terms
        ``bound_coverage``, ``bound_complexity`` and ``bound_kl``; and the same inequality with the
        other moduli, ``bound_tight`` and ``bound_printed``. NaN where the
        assumption fails, or the class has no range or covering number.

    References:
        `liu:24`, eq. A.44; :mod:`rpo_theory.bounds`.
    """
    numbers = np.stack([inputs.coverage, inputs.complexity, inputs.reward_max])
    valid = valid & ~np.isnan(numbers).any(axis=0)
    inputs = BoundInputs(*(np.where(valid, values, 1.0) for values in inputs))  # replaced below
    arguments = {
        "n_pairs": comparisons,
        "complexity": inputs.complexity,
        "eta": np.where(eta > 0, eta, 1.0),  # replaced below
        "beta": beta,
        "coverage": inputs.coverage,
        "kl": inputs.comparator_kl,
    }

    def bound(modulus: Callable[..., Array], **replaced: np.ndarray) -> Float[np.ndarray, " B"]:
        terms = {**arguments, **replaced}
        with jax.enable_x64(True):
            return np.asarray(suboptimality_bound(modulus(inputs.reward_max), **terms))

    corrected = bound(corrected_modulus)
    coverage_term = bound(corrected_modulus, complexity=0.0 * eta, kl=0.0 * eta)
    kl_term = beta * inputs.comparator_kl
    with np.errstate(invalid="ignore"):  # an infinite bound minus an infinite term
        complexity_term = corrected - coverage_term - kl_term
    columns = {
        "bound": corrected,
        "bound_tight": bound(tight_modulus),
        "bound_printed": bound(printed_modulus),
        "bound_coverage": coverage_term,
        "bound_complexity": complexity_term,
        "bound_kl": kl_term,
    }
    return {
        name: np.where(valid, np.where(eta > 0, column, np.inf), np.nan)
        for name, column in columns.items()
    }


def _complexities(
    reward_class: RewardClass,
    shape: tuple[int, ...],
    reward_max: Float[np.ndarray, " B"],
    comparisons: Float[np.ndarray, " B"],
    delta: float,
) -> Float[np.ndarray, " B"]:
    """Return iota of every instance; covering numbers are computed once per distinct input.

    It is NaN for a class without a range or a covering number.
    """
    scales = covering_scale(comparisons, reward_max)
    leaves, treedef = jax.tree.flatten(reward_class)
    rows = [array.reshape(len(scales), -1) for array in (scales, *map(np.asarray, leaves))]
    differs = np.ones(len(scales), bool)  # from the instance before it
    differs[1:] = np.any([(row[1:] != row[:-1]).any(axis=1) for row in rows], axis=0)
    known: dict[tuple[bytes, ...], float] = {}
    counts = []
    for i in np.flatnonzero(differs):
        key = tuple(row[i].tobytes() for row in rows)
        if key not in known:
            single = jax.tree.unflatten(treedef, [np.asarray(leaf)[i] for leaf in leaves])
            known[key] = (
                np.nan
                if np.isnan(scales[i])
                else log_covering_number(single, float(scales[i]), shape=(shape[0], shape[1]))
            )
        counts.append(known[key])
    return np.asarray(complexity(np.array(counts)[np.cumsum(differs) - 1], delta))
