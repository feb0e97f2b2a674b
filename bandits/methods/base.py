r"""What every learner takes and gives: its options, its answer, and its baseline policy.

A learner is a function of problems, their reward classes and options. Every array of the first two
has a leading batch axis ``b``; so has every array of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from rpo_theory import minimax
from rpo_theory.policies import chosen_policy, data_marginal_policy
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

Baseline = Literal["chosen", "reference", "data_marginal", "given"]
Rewards = Literal["given", "unbounded"]
Curvature = Literal["safe", "printed"]
CertificateKind = Literal["duality_gap", "stationarity_residual", "closed_form"]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    r"""Options of the methods; :math:`\beta` and :math:`\eta` are the problem's.

    Attributes:
        baseline: :math:`\pi_{base}` of RPO, VPO's calibration policy, and the policy that
            pessimistic MLE, FREEHAND and SPAC measure rewards against: the law of the chosen
            responses, the reference, the law of both members of a pair (all three from the data of
            each prompt), or the problem's own.
        rewards: what RPO, DPO and VPO range over: the given class, or all rewards (with a tabular
            policy, as trained).
        vpo_alpha: weight :math:`\alpha` of VPO's term beside the *sum* of the DPO losses, so that
            :math:`\eta = \alpha/N`; None for the problem's :math:`\eta`.
        ipo_tau: :math:`\tau` of IPO; None for the problem's :math:`\beta`.
        dpop_penalty: :math:`\lambda` of DPOP.
        confidence: :math:`\delta`, the probability with which pessimistic MLE may be wrong.
        pessimism: the constant :math:`c` of pessimistic MLE's radius.
        ridge: :math:`\lambda` of its covariance.
        curvature: its :math:`\gamma`, the least slope of the logistic law: as printed, or safe for
            all reward differences of the class.
        likelihood_slack: :math:`\zeta` of FREEHAND, nats of the total log-likelihood.
        self_play_rounds: rounds of SPAC.

    Raises:
        ValueError: an option out of range.
    """

    baseline: Baseline = "chosen"
    rewards: Rewards = "given"
    vpo_alpha: float | None = None
    ipo_tau: float | None = None
    dpop_penalty: float = 5.0
    confidence: float = 0.1
    pessimism: float = 1.0
    ridge: float = 1e-3
    curvature: Curvature = "safe"
    likelihood_slack: float = 3.0
    self_play_rounds: int = 100

    def __post_init__(self) -> None:
        """Refuse what no method can use."""
        for name, allowed in (
            ("baseline", Baseline),
            ("rewards", Rewards),
            ("curvature", Curvature),
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


class FitResult(NamedTuple):
    r"""A batch of learned policies, each with the proof of how well its problem was solved.

    Attributes:
        policy: :math:`\hat\pi(a|x)`, rows sum to one, shape ``[b x a]``.
        reward: :math:`\hat r(x,a)`, ``nan`` for a method that has none, shape ``[b x a]``.
        certificate: how far from optimal the answer can be, at least 0, shape ``[b]``.
        certificate_kind: what the certificate is: a proven bound on the objective, nats or units of
            reward; the residual of the optimality conditions; or 0 because a formula was evaluated.
        status: codes of :class:`rpo_theory.types.Status`, shape ``[b]``.
    """

    policy: Float[np.ndarray, "b x a"]
    reward: Float[np.ndarray, "b x a"]
    certificate: Float[np.ndarray, " b"]
    certificate_kind: CertificateKind
    status: Int[np.ndarray, " b"]


MethodFunction = Callable[[Problem, RewardClass, MethodOptions], FitResult]


def with_baseline(problem: Problem, options: MethodOptions) -> Problem:
    r"""The problems with the baseline policy that the options ask for.

    Args:
        problem: instances, with a leading batch axis.
        options: of which ``baseline`` counts.

    Returns:
        The same problems with another :math:`\pi_{base}`; prompts without data fall back to the
        reference.

    Examples:
        >>> even, wins = np.full((1, 1, 2), 0.5), np.array([[[[0.0, 3.0], [1.0, 0.0]]]])
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.ones(1))
        >>> with_baseline(problem, MethodOptions()).baseline_policy.tolist()
        [[[0.75, 0.25]]]
    """
    match options.baseline:
        case "chosen":
            law = per_prompt(chosen_policy, problem)
        case "data_marginal":
            law = per_prompt(data_marginal_policy, problem)
        case "reference":
            law = np.asarray(problem.reference_policy)
        case "given":
            law = np.asarray(problem.baseline_policy)
    return problem._replace(baseline_policy=law)


def per_prompt(law: Callable[..., object], problem: Problem) -> Float[np.ndarray, "b x a"]:
    """A policy made of the win counts of each prompt, for a whole batch.

    Args:
        law: from win counts and a fallback to a policy, both over the prompts of one problem.
        problem: instances, with a leading batch axis.

    Returns:
        The policies.
    """
    wins = np.asarray(problem.wins, np.float64)
    reference = np.asarray(problem.reference_policy, np.float64)
    n_actions = reference.shape[-1]
    # To such a law all the prompts of a batch are the prompts of one problem.
    with jax.enable_x64(True):
        flat = law(wins.reshape(-1, n_actions, n_actions), reference.reshape(-1, n_actions))
    return np.asarray(flat).reshape(reference.shape)


def mle_reward(problem: Problem, reward_class: RewardClass) -> Float[np.ndarray, "b x a"]:
    r"""Maximum likelihood rewards of a class: the exact solver at :math:`\eta=0`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: their reward classes, likewise.

    Returns:
        Rewards; where data leave them free, those of the solver's central path.
    """
    without = problem._replace(eta=np.zeros_like(problem.eta))
    return np.asarray(minimax.solve_batch(without, reward_class, throw=False).reward)


def reward_range(
    reward_class: TabularBox | LinearBall | FiniteClass,
) -> Float[np.ndarray, " b"]:
    r"""Largest difference of rewards at one prompt that members of each class can have.

    Args:
        reward_class: classes with a leading batch axis.

    Returns:
        Units of reward: :math:`R_{max}`, or :math:`B\max\|\phi(x,a)-\phi(x,a')\|`; at least a tiny
        number, so that it can divide.

    Examples:
        >>> features = np.array([[[[1.0], [-2.0]]]])
        >>> reward_range(LinearBall(features, np.array([0.5]))).tolist()
        [1.5]
    """
    match reward_class:
        case TabularBox(maximum):
            width = np.asarray(maximum, np.float64)
        case LinearBall(features, radius):
            features = np.asarray(features, np.float64)
            apart = features[:, :, :, None] - features[:, :, None, :]
            width = np.linalg.norm(apart, axis=-1).max(axis=(1, 2, 3)) * np.asarray(radius)
        case FiniteClass(rewards):
            width = np.ptp(np.asarray(rewards, np.float64), axis=-1).max(axis=(1, 2))
    return np.maximum(width, np.finfo(np.float64).tiny)


def require_compact_class(method: str, reward_class: RewardClass) -> TabularBox | LinearBall:
    """The reward class of a method that needs a compact and convex one.

    Args:
        method: its name, for the error.
        reward_class: what it was given.

    Returns:
        The same class.

    Raises:
        ValueError: a class of another kind.

    Examples:
        >>> require_compact_class("spac", TabularBox(np.ones(1))).maximum.tolist()
        [1.0]
    """
    if isinstance(reward_class, TabularBox | LinearBall):
        return reward_class
    got = type(reward_class).__name__
    raise ValueError(f"`reward_class` must be TabularBox or LinearBall for {method}, got {got}")
