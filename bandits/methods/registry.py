r"""Every method that a study compares, behind one signature.

Here are those that the exact saddle solvers answer: RPO by three routes, and what it becomes for
other choices of its parts. With :math:`\eta=0` it is DPO; over a class closed under adding
constants per prompt DPO's policy is that of two-stage RLHF, :math:`\pi_{\hat r}` of the maximum
likelihood reward. VPO is RPO with a calibration policy as baseline (`cen:24`); POWER-DL's base loss
is RPO with a uniform reference (`rashidinejad:24`). :mod:`bandits.methods.pessimistic_mle`,
:mod:`bandits.methods.freehand`, :mod:`bandits.methods.spac` and :mod:`bandits.methods.policy_losses` hold the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import numpy as np
from jaxtyping import Float

from rpo_theory import direct, maximin, minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.certificate import duality_gap_bound
from rpo_theory.policies import chosen_policy
from rpo_theory.rewards import RewardClass, Unbounded
from rpo_theory.types import ArrayLike, Problem, Solution, Status

from .base import (
    CertificateKind,
    FitResult,
    MethodFunction,
    MethodOptions,
    per_prompt,
    with_baseline,
)
from .freehand import freehand
from .pessimistic_mle import pessimistic_mle
from .policy_losses import chi_po, dpop, ipo
from .spac import spac

GROUP = 8192  # entries of the win counts whose certificates are computed at a time
SAME = 1e-6  # rewards closer than this, relative to the largest, are a tie: solvers cannot tell


def rpo(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""RPO solved exactly, :math:`\min_r\max_\pi\phi`, with its duality gap.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: ``baseline`` and ``rewards`` count.

    Returns:
        The Gibbs policies of the adversarial rewards.

    References:
        `liu:24`, eqs. 4.1 to 4.8.
    """
    reward_class = _asked_for(reward_class, options)
    return _exact(with_baseline(problem, options), reward_class)


def rpo_maximin(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""Algorithm 1: :math:`\max_\pi\min_r\phi`, by a method that never uses Lemma 4.1.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: ``baseline`` and ``rewards`` count.

    Returns:
        The policies; on a non-convex class they differ from those of :func:`rpo`.

    References:
        `liu:24`, Algorithm 1, eq. 3.3.
    """
    return _by_another_route(maximin.solve_batch, "residual", problem, reward_class, options)


def rpo_policy(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""Algorithm 2: the RPO loss minimised over the policy.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: ``baseline`` and ``rewards`` count.

    Returns:
        The policies.

    References:
        `liu:24`, Algorithm 2, eq. 4.8.
    """
    solve_batch = direct.solve_batch
    return _by_another_route(solve_batch, "gradient_norm", problem, reward_class, options)


def dpo(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""DPO: the RPO loss without its second term, :math:`\eta=0`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: ``rewards`` counts.

    Returns:
        The policies. Where data leave rewards free they are those of the solver's central path;
        over all rewards the limits of gradient descent from the reference policy.

    References:
        `rafailov:23`.
    """
    without = problem._replace(eta=np.zeros_like(problem.eta))
    return _exact(without, _asked_for(reward_class, options))


def two_stage(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""Two-stage RLHF: the maximum likelihood reward of the class, then :math:`\pi_{\hat r}`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: none counts.

    Returns:
        The policies that are best for the reward less :math:`\beta` times the divergence from the
        reference.

    References:
        `liu:24`, sec. 3 (:math:`\eta=0`).
    """
    del options
    return _exact(problem._replace(eta=np.zeros_like(problem.eta)), reward_class)


def greedy_mle(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""The response of highest maximum likelihood reward, among those the reference gives.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: none counts.

    Returns:
        The policies; equal rewards share in proportion to the reference.

    References:
        `zhu:23`, Theorem 3.9.
    """
    likely = two_stage(problem, reward_class, options)
    return likely._replace(policy=greedy_policy(likely.reward, problem.reference_policy))


def behavior_cloning(
    problem: Problem, reward_class: RewardClass, options: MethodOptions
) -> FitResult:
    r"""SFT on the chosen responses: their empirical law, the maximum likelihood policy.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: of no use here.
        options: none counts.

    Returns:
        The policies; the reference at prompts without data.
    """
    del reward_class, options
    policy = per_prompt(chosen_policy, problem)
    n_problems = policy.shape[0]
    return FitResult(
        policy=policy,
        reward=np.full_like(policy, np.nan),
        certificate=np.zeros(n_problems),
        certificate_kind="closed_form",
        status=np.full(n_problems, Status.SOLVED.value, np.int32),
    )


def vpo(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""Offline VPO: :math:`\sum_i` DPO losses :math:`-\alpha\beta\,E_{\pi_{cal}}\log\pi`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.
        options: ``baseline`` is :math:`\pi_{cal}`; ``vpo_alpha`` and ``rewards`` count.

    Returns:
        The policies of RPO with :math:`\eta=\alpha/N`.

    References:
        `cen:24`, offline objective.
    """
    if options.vpo_alpha is not None:
        n_comparisons = np.asarray(problem.wins).sum(axis=(1, 2, 3))
        problem = problem._replace(eta=options.vpo_alpha / np.maximum(n_comparisons, 1.0))
    return rpo(problem, reward_class, options)


def power(problem: Problem, reward_class: RewardClass, options: MethodOptions) -> FitResult:
    r"""POWER-DL's base loss, for responses of equal weight 1.

    Without a reference, the entropy of the policy takes the place of the divergence: that is a
    uniform reference. The SFT term is on the chosen responses of the same pairs.

    Args:
        problem: instances, with a leading batch axis; of the reference only the support counts.
        reward_class: their reward classes, likewise.
        options: ``rewards`` counts.

    Returns:
        The policies.

    References:
        `rashidinejad:24`.
    """
    support = np.asarray(problem.reference_policy, np.float64) > 0
    uniform = problem._replace(reference_policy=support / support.sum(axis=-1, keepdims=True))
    at_prompt = np.asarray(problem.wins, np.float64).sum(axis=(2, 3))
    total = at_prompt.sum(axis=1, keepdims=True)
    share = np.where(total > 0, at_prompt / np.maximum(total, 1e-300), problem.context_weights)
    chosen = per_prompt(chosen_policy, uniform)
    pairs = uniform._replace(context_weights=share, baseline_policy=chosen)
    return _exact(pairs, _asked_for(reward_class, options))


def greedy_policy(
    reward: Float[ArrayLike, "b x a"], reference: Float[ArrayLike, "b x a"]
) -> Float[np.ndarray, "b x a"]:
    """All probability on the responses of highest reward, among those the reference gives.

    Args:
        reward: rewards.
        reference: reference policy; equal rewards share in proportion to it.

    Returns:
        Probabilities, rows sum to one.

    Examples:
        >>> greedy_policy(np.array([[[1.0, 1.0, 2.0]]]), np.array([[[0.2, 0.8, 0.0]]])).tolist()
        [[[0.2, 0.8, 0.0]]]
    """
    reward, reference = np.asarray(reward), np.asarray(reference)
    possible = np.where(reference > 0, reward, -np.inf)
    best = possible.max(axis=-1, keepdims=True)
    blur = SAME * np.maximum(1.0, np.abs(best))
    kept = np.where(possible >= best - blur, reference, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True)


def _asked_for(reward_class: RewardClass, options: MethodOptions) -> RewardClass:
    return Unbounded() if options.rewards == "unbounded" else reward_class


def _exact(problem: Problem, reward_class: RewardClass) -> FitResult:
    solution = minimax.solve_batch(problem, reward_class, throw=False)
    if isinstance(reward_class, Unbounded):
        return _learned(solution, solution.stats["residual"], "stationarity_residual")
    return _learned(solution, solution.stats["duality_gap"], "duality_gap")


def _by_another_route(
    solve_batch: Callable[..., Solution],
    residual: str,
    problem: Problem,
    reward_class: RewardClass,
    options: MethodOptions,
) -> FitResult:
    """Solve by another solver; the certificate does not come from it where there is one."""
    problem, reward_class = with_baseline(problem, options), _asked_for(reward_class, options)
    solution = solve_batch(problem, reward_class, throw=False)
    if isinstance(reward_class, Unbounded):
        return _learned(solution, solution.stats[residual], "stationarity_residual")
    policy, reward = solution.policy, solution.reward
    size = group_size(problem, GROUP)
    gap = map_in_groups(_gaps, problem, reward_class, policy, reward, size=size)
    return _learned(solution, gap, "duality_gap")


_gaps = jax.jit(jax.vmap(duality_gap_bound))


def _learned(solution: Solution, certificate: ArrayLike, kind: CertificateKind) -> FitResult:
    return FitResult(
        policy=np.asarray(solution.policy),
        reward=np.asarray(solution.reward),
        certificate=np.asarray(certificate),
        certificate_kind=kind,
        status=np.asarray(solution.status),
    )


METHODS: Mapping[str, MethodFunction] = MappingProxyType(
    {
        "rpo": rpo,
        "rpo_maximin": rpo_maximin,
        "rpo_policy": rpo_policy,
        "dpo": dpo,
        "two_stage": two_stage,
        "greedy_mle": greedy_mle,
        "behavior_cloning": behavior_cloning,
        "pessimistic_mle": pessimistic_mle,
        "vpo": vpo,
        "ipo": ipo,
        "dpop": dpop,
        "chi_po": chi_po,
        "power": power,
        "freehand": freehand,
        "spac": spac,
    }
)
"""Every method by the name that a study gives it."""
