r"""Methods that need nothing but the exact saddle solvers: RPO by three routes, DPO, MLE.

With :math:`\eta=0` RPO is DPO. If a class is closed under adding a constant per prompt, the policy
of DPO is that of two-stage RLHF, :math:`\pi_{\hat r}` of the maximum likelihood reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import jax
import numpy as np
from jaxtyping import Float

from bandits.environments.base import baseline_policy
from rpo_theory import direct, maximin, minimax
from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.certificate import duality_gap_bound
from rpo_theory.rewards import RewardClass, Unbounded, is_compact
from rpo_theory.types import ArrayLike, Problem, Solution, Status

from .base import (
    CertificateKind,
    FitContext,
    FitResult,
    Method,
    with_baseline,
)
from .eta_rules import EtaRule, choose_eta
from .options import MethodOptions, RpoOptions, SearchOptions, check_option

GROUP = 8192  # entries of the win counts whose certificates are computed at a time
TIE_TOLERANCE = 1e-6  # relative to the largest reward: below it solvers cannot tell rewards apart


@dataclass(frozen=True, kw_only=True)
class TunedRpoOptions(RpoOptions):
    r"""Options of RPO by the min-max route.

    Attributes:
        eta: rule that chooses :math:`\eta` from the data, see :mod:`bandits.methods.eta_rules`;
            "given" for that of the problem.

    Raises:
        ValueError: if an option is out of range.
    """

    eta: EtaRule = "given"

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        RpoOptions.__post_init__(self)
        check_option("eta", self.eta, get_args(EtaRule))

    def sets_eta(self) -> bool:
        r"""Return whether a rule sets :math:`\eta`."""
        return self.eta != "given"


def rpo(
    problem: Problem, reward_class: RewardClass, options: TunedRpoOptions, context: FitContext
) -> FitResult:
    r"""Solve RPO exactly, :math:`\min_r\max_\pi\phi`, with its duality gap.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The Gibbs policies of the adversarial rewards.

    References:
        `liu:24`, eqs. 4.1 to 4.8.
    """
    problem, reward_class = with_baseline(problem, options), search_class(reward_class, options)
    if options.sets_eta():
        problem = problem._replace(eta=choose_eta(options.eta, problem, reward_class, context))
    return solve_exactly(problem, reward_class, context)


def rpo_maximin(
    problem: Problem, reward_class: RewardClass, options: RpoOptions, context: FitContext
) -> FitResult:
    r"""Solve Algorithm 1, :math:`\max_\pi\min_r\phi`, by a route that never uses Lemma 4.1.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies. On a class that is not convex they differ from those of :func:`rpo`.

    References:
        `liu:24`, Algorithm 1, eq. 3.3.
    """
    del context  # the route has one kernel
    return _solve_by_route(maximin.solve_batch, "residual", problem, reward_class, options)


def rpo_policy(
    problem: Problem, reward_class: RewardClass, options: RpoOptions, context: FitContext
) -> FitResult:
    r"""Minimize the RPO loss over the policy, Algorithm 2.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies.

    References:
        `liu:24`, Algorithm 2, eq. 4.8.
    """
    del context  # the route has one kernel
    return _solve_by_route(direct.solve_batch, "gradient_norm", problem, reward_class, options)


def dpo(
    problem: Problem, reward_class: RewardClass, options: SearchOptions, context: FitContext
) -> FitResult:
    r"""Fit DPO: the RPO loss without its second term, :math:`\eta=0`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies. If the data leave rewards free, they are those of the solver's central path;
        over all rewards they are the limits of gradient descent from the reference policy.

    References:
        `rafailov:23`.
    """
    likelihood_only = problem._replace(eta=np.zeros_like(problem.eta))
    return solve_exactly(likelihood_only, search_class(reward_class, options), context)


def two_stage(
    problem: Problem, reward_class: RewardClass, options: MethodOptions, context: FitContext
) -> FitResult:
    r"""Fit two-stage RLHF: the maximum likelihood reward of the class, then :math:`\pi_{\hat r}`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: none.
        context: kernel of the study.

    Returns:
        The policies that maximize the reward minus :math:`\beta` times the divergence from the
        reference.

    References:
        `liu:24`, sec. 3 (:math:`\eta=0`).
    """
    likelihood_only = problem._replace(eta=np.zeros_like(problem.eta))
    return solve_exactly(likelihood_only, reward_class, context)


def greedy_mle(
    problem: Problem, reward_class: RewardClass, options: MethodOptions, context: FitContext
) -> FitResult:
    r"""Fit the maximum likelihood reward and take its best response in the reference's support.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: none.
        context: kernel of the study.

    Returns:
        The policies. Responses of equal reward share in proportion to the reference.

    References:
        `zhu:23`, Theorem 3.9.
    """
    fit = two_stage(problem, reward_class, options, context)
    return fit._replace(policy=greedy_policy(fit.reward, problem.reference_policy))


def behavior_cloning(
    problem: Problem, reward_class: RewardClass, options: MethodOptions, context: FitContext
) -> FitResult:
    r"""Fit SFT on the chosen responses: their empirical distribution, which maximizes likelihood.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: ignored, like what follows; present for the common signature.
        options: none.
        context: ignored.

    Returns:
        The policies; the reference at prompts without data.
    """
    del reward_class, options, context
    policy = baseline_policy("chosen", wins=problem.wins, reference=problem.reference_policy)
    n_problems = policy.shape[0]
    return FitResult(
        policy=policy,
        reward=np.full_like(policy, np.nan),
        certificate=np.zeros(n_problems),
        certificate_kind="closed_form",
        status=np.full(n_problems, Status.SOLVED.value, np.int32),
    )


def greedy_policy(
    reward: Float[ArrayLike, "b x a"], reference: Float[ArrayLike, "b x a"]
) -> Float[np.ndarray, "b x a"]:
    """Return the policy on the responses of highest reward in the support of the reference.

    Args:
        reward: rewards.
        reference: reference policy; responses of equal reward share in proportion to it.

    Returns:
        Probabilities; each row sums to one.

    Examples:
        >>> greedy_policy(np.array([[[1.0, 1.0, 2.0]]]), np.array([[[0.2, 0.8, 0.0]]])).tolist()
        [[[0.2, 0.8, 0.0]]]
    """
    reward, reference = np.asarray(reward), np.asarray(reference)
    possible = np.where(reference > 0, reward, -np.inf)
    best = possible.max(axis=-1, keepdims=True)
    tolerance = TIE_TOLERANCE * np.maximum(1.0, np.abs(best))
    kept = np.where(possible >= best - tolerance, reference, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True)


def uniform_reference(problem: Problem) -> Float[np.ndarray, "b x a"]:
    """Return the uniform policy on the support of the reference.

    Args:
        problem: instances, with a leading batch axis.

    Returns:
        Probabilities; each row sums to one.

    Examples:
        >>> reference, wins = np.array([[[0.0, 0.2, 0.8]]]), np.zeros((1, 1, 3, 3))
        >>> problem = Problem(np.ones((1, 1)), reference, reference, wins, np.ones(1), np.ones(1))
        >>> uniform_reference(problem).tolist()
        [[[0.0, 0.5, 0.5]]]
    """
    support = np.asarray(problem.reference_policy, np.float64) > 0
    return support / support.sum(axis=-1, keepdims=True)


def search_class(reward_class: RewardClass, options: SearchOptions) -> RewardClass:
    """Return the class that the options name, see :class:`SearchOptions`.

    Args:
        reward_class: reward class of the problems.
        options: options of the method.

    Returns:
        The same class, or all rewards.

    Examples:
        >>> search_class(Unbounded(), SearchOptions())
        Unbounded()
    """
    return Unbounded() if options.rewards == "unbounded" else reward_class


def solve_exactly(problem: Problem, reward_class: RewardClass, context: FitContext) -> FitResult:
    r"""Solve the saddle problem :math:`\min_r\max_\pi\phi` with its certificate.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        context: kernel of the study.

    Returns:
        The Gibbs policies. The certificate is the duality gap, over all rewards the residual.

    Examples:
        >>> even, wins = np.full((1, 1, 2), 0.5), np.array([[[[0.0, 3.0], [1.0, 0.0]]]])
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.zeros(1))
        >>> solve_exactly(problem, Unbounded(), FitContext()).policy.round(6).tolist()
        [[[0.75, 0.25]]]
    """
    solution = minimax.solve_batch(problem, reward_class, throw=False, kernel=context.kernel)
    if not is_compact(reward_class):
        return _fit_result(solution, solution.stats["residual"], "stationarity_residual")
    return _fit_result(solution, solution.stats["duality_gap"], "duality_gap")


def _solve_by_route(
    solve_batch: Callable[..., Solution],
    residual: str,
    problem: Problem,
    reward_class: RewardClass,
    options: RpoOptions,
) -> FitResult:
    """Solve by the given solver; on a bounded class, certify its result independently of it."""
    problem, reward_class = with_baseline(problem, options), search_class(reward_class, options)
    solution = solve_batch(problem, reward_class, throw=False)
    if not is_compact(reward_class):
        return _fit_result(solution, solution.stats[residual], "stationarity_residual")
    policy, reward = solution.policy, solution.reward
    size = group_size(problem, GROUP)
    gap = map_in_groups(_gaps, problem, reward_class, policy, reward, size=size)
    return _fit_result(solution, gap, "duality_gap")


_gaps = jax.jit(jax.vmap(duality_gap_bound))


def _fit_result(solution: Solution, certificate: ArrayLike, kind: CertificateKind) -> FitResult:
    return FitResult(
        policy=np.asarray(solution.policy),
        reward=np.asarray(solution.reward),
        certificate=np.asarray(certificate),
        certificate_kind=kind,
        status=np.asarray(solution.status),
    )


METHODS = (
    Method("rpo", rpo, "RPO", TunedRpoOptions, bound="theorem"),
    Method("rpo_maximin", rpo_maximin, "RPO, Algorithm 1", RpoOptions, bound="theorem"),
    Method("rpo_policy", rpo_policy, "RPO, policy descent", RpoOptions, bound="theorem"),
    Method("dpo", dpo, "DPO", SearchOptions, uses_eta=False),
    Method("two_stage", two_stage, "two-stage MLE + KL", uses_eta=False),
    Method("greedy_mle", greedy_mle, "greedy MLE", uses_eta=False, uses_beta=False),
    Method(
        "behavior_cloning", behavior_cloning, "behavior cloning", uses_eta=False, uses_beta=False
    ),
)
"""Methods of this module."""
