r"""Common parts of the methods: options, results, baseline policies and reward ranges.

A method is a function of problems, their reward classes and options. Every array of its arguments
and of its result has a leading batch axis ``b``, with one entry for each problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from bandits.environments.base import BaselineName, baseline_policy
from rpo_theory import minimax
from rpo_theory.minimax import Kernel
from rpo_theory.rewards import (
    LinearBall,
    RewardClass,
    TabularBox,
    is_compact,
    is_convex,
    reward_max,
)
from rpo_theory.types import Problem

BaselineOption = Literal[BaselineName, "given"]
"""Baseline policy by name, or "given" for the one of the problem."""

RewardsOption = Literal["given", "unbounded"]
"""Reward class of the problem, or all rewards."""

CurvatureOption = Literal["safe", "printed"]
"""Constant of pessimistic maximum likelihood."""

CertificateKind = Literal["duality_gap", "stationarity_residual", "closed_form"]
"""Kind of a certificate, see :class:`FitResult`."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    r"""Options of the methods; the weights :math:`\beta` and :math:`\eta` belong to the problem.

    Attributes:
        baseline: baseline policy :math:`\pi_{base}` of RPO, calibration policy of VPO, and policy
            against which pessimistic MLE, FREEHAND and SPAC measure rewards: "chosen" for the
            distribution of the winners at each prompt, "data_marginal" for that of both members of
            a pair, "reference" for :math:`\pi_{ref}`, or "given" for the baseline of the problem.
        rewards: rewards over which RPO, DPO and VPO optimize: "given" for the class of the problem,
            or "unbounded" for all rewards, as in training a tabular policy.
        vpo_alpha: weight :math:`\alpha` of VPO's term against the *sum* of the DPO losses, so that
            :math:`\eta = \alpha/N`; None for the :math:`\eta` of the problem.
        ipo_tau: :math:`\tau` of IPO; None for the :math:`\beta` of the problem.
        dpop_penalty: :math:`\lambda` of DPOP.
        confidence: :math:`\delta`, the probability with which pessimistic MLE may be wrong.
        pessimism: constant :math:`c` in the radius of pessimistic MLE.
        ridge: :math:`\lambda` in the covariance of pessimistic MLE.
        curvature: :math:`\gamma` of pessimistic MLE, the smallest derivative of the logistic
            function: "printed" as in the paper, or "safe" for all reward differences of the class.
        likelihood_slack: :math:`\zeta` of FREEHAND, nats of the log-likelihood of all data.
        self_play_rounds: number of rounds of SPAC.

    Raises:
        ValueError: if an option is out of range.
    """

    baseline: BaselineOption = "chosen"
    rewards: RewardsOption = "given"
    vpo_alpha: float | None = None
    ipo_tau: float | None = None
    dpop_penalty: float = 5.0
    confidence: float = 0.1
    pessimism: float = 1.0
    ridge: float = 1e-3
    curvature: CurvatureOption = "safe"
    likelihood_slack: float = 3.0
    self_play_rounds: int = 100

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        for name, allowed in (
            ("baseline", BaselineOption),
            ("rewards", RewardsOption),
            ("curvature", CurvatureOption),
        ):
            if getattr(self, name) not in get_args(allowed):
                names = ", ".join(get_args(allowed))
                raise ValueError(f"`{name}` must be one of {names}, got {getattr(self, name)!r}")
        for name in ("dpop_penalty", "pessimism", "vpo_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise ValueError(f"`{name}` must be a finite number at least 0, got {value}")
        for name in ("ipo_tau", "ridge", "likelihood_slack"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be a finite number greater than 0, got {value}")
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"`confidence` must be a probability between 0 and 1, got {self.confidence}"
            )
        if self.self_play_rounds < 1:
            raise ValueError(f"`self_play_rounds` must be at least 1, got {self.self_play_rounds}")


@dataclass(frozen=True, kw_only=True)
class FitOptions(MethodOptions):
    """Options of a method, and what a study decides for all its methods.

    Attributes:
        kernel: compiled code that solves boxes, see :func:`rpo_theory.minimax.solve_batch`.
    """

    kernel: Kernel = "jax"


def kernel_of(options: MethodOptions) -> Kernel:
    """Return the kernel of a study's options; a method that is called by itself uses JAX."""
    return options.kernel if isinstance(options, FitOptions) else "jax"


class FitResult(NamedTuple):
    r"""Fitted policies of a batch of problems, with certificates of how well each was solved.

    Attributes:
        policy: :math:`\hat\pi(a|x)`, shape ``[b x a]``; each row sums to one.
        reward: :math:`\hat r(x,a)`, shape ``[b x a]``; ``nan`` if the method has no reward.
        certificate: bound on the distance from optimality, at least 0, shape ``[b]``.
        certificate_kind: "duality_gap" for a proven bound on the objective, in nats or units of
            reward; "stationarity_residual" for the residual of the optimality conditions;
            "closed_form" for 0, because a formula was evaluated.
        status: codes of :class:`rpo_theory.types.Status`, shape ``[b]``.
    """

    policy: Float[np.ndarray, "b x a"]
    reward: Float[np.ndarray, "b x a"]
    certificate: Float[np.ndarray, " b"]
    certificate_kind: CertificateKind
    status: Int[np.ndarray, " b"]


MethodFunction = Callable[[Problem, RewardClass, MethodOptions], FitResult]
"""Signature of every method."""


def with_baseline(problem: Problem, options: MethodOptions) -> Problem:
    r"""Return the problems with the baseline policy that the options name.

    Args:
        problem: instances, with a leading batch axis.
        options: options of the method; only ``baseline`` is used.

    Returns:
        The same problems with another :math:`\pi_{base}`. Prompts without data fall back to the
        reference.

    Examples:
        >>> even, wins = np.full((1, 1, 2), 0.5), np.array([[[[0.0, 3.0], [1.0, 0.0]]]])
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.ones(1))
        >>> with_baseline(problem, MethodOptions()).baseline_policy.tolist()
        [[[0.75, 0.25]]]
    """
    if options.baseline == "given":
        return problem._replace(baseline_policy=np.asarray(problem.baseline_policy))
    policy = baseline_policy(
        options.baseline, wins=problem.wins, reference=problem.reference_policy
    )
    return problem._replace(baseline_policy=policy)


def mle_reward(
    problem: Problem, reward_class: RewardClass, kernel: Kernel = "jax"
) -> Float[np.ndarray, "b x a"]:
    r"""Return the maximum likelihood rewards of a class, by the exact solver at :math:`\eta=0`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        kernel: compiled code that solves boxes.

    Returns:
        Rewards. If the data leave a reward free, it is that of the solver's central path.
    """
    likelihood_only = problem._replace(eta=np.zeros_like(problem.eta))
    solution = minimax.solve_batch(likelihood_only, reward_class, throw=False, kernel=kernel)
    return np.asarray(solution.reward)


def reward_range(reward_class: RewardClass) -> Float[np.ndarray, " b"]:
    r"""Return the largest difference between two rewards of a prompt within each class.

    Args:
        reward_class: classes with a leading batch axis.

    Returns:
        Units of reward: the ``reward_max`` of the class, such as :math:`R_{max}` or
        :math:`B\max\|\phi(x,a)-\phi(x,a')\|`; NaN if it has none. At least the smallest positive
        number, so that it can be a divisor.

    Examples:
        >>> features = np.array([[[[1.0], [-2.0]]]])
        >>> reward_range(LinearBall(features, np.array([0.5]))).tolist()
        [1.5]
    """
    with jax.enable_x64(True):
        width = np.asarray(reward_max(reward_class), np.float64)
    return np.maximum(width, np.finfo(np.float64).tiny)


def require_compact_class(method: str, reward_class: RewardClass) -> RewardClass:
    """Return the reward class if it is compact and convex and has a range, or refuse it.

    Args:
        method: name of the method, for the error message.
        reward_class: class of any kind.

    Returns:
        The same class.

    Raises:
        ValueError: if the class is not compact, not convex or has no ``reward_max``.

    Examples:
        >>> require_compact_class("spac", TabularBox(np.ones(1))).maximum.tolist()
        [1.0]
    """
    got = type(reward_class).__name__
    if not (is_compact(reward_class) and is_convex(reward_class)):
        raise ValueError(f"`reward_class` must be compact and convex for {method}, got {got}")
    if np.isnan(np.asarray(reward_max(reward_class), np.float64)).any():
        raise ValueError(f"`reward_class` must have `reward_max` for {method}, got {got} without")
    return reward_class


def require_box_or_ball(method: str, reward_class: RewardClass) -> TabularBox | LinearBall:
    """Return the reward class if a method has formulas for it, or refuse it.

    Args:
        method: name of the method, for the error message.
        reward_class: class of any kind.

    Returns:
        The same class.

    Raises:
        ValueError: if the class is neither a tabular box nor a linear ball.

    Examples:
        >>> require_box_or_ball("dpop", TabularBox(np.ones(1))).maximum.tolist()
        [1.0]
    """
    if isinstance(reward_class, TabularBox | LinearBall):
        return reward_class
    got = type(reward_class).__name__
    raise ValueError(f"`reward_class` must be TabularBox or LinearBall for {method}, got {got}")
