r"""What a method is: a record of its fit function, its options, and what a study must know of it.

A fit is a function of problems, their reward classes, the options of the method and what a study
gives to all its methods. Every array of its arguments and of its result has a leading batch axis
``b``, with one entry for each problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from bandits.environments.base import baseline_policy
from rpo_io.config_types import build
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

from .options import BaselineOptions, MethodOptions

CertificateKind = Literal["duality_gap", "stationarity_residual", "closed_form", "none"]
"""Kind of a certificate, see :class:`FitResult`."""

BoundKind = Literal["theorem"]
"""Bound on the gap of a method: "theorem" for that of Theorem 5.3."""

FAILED = -1
"""Status of a fit without a policy, beside the codes of :class:`rpo_theory.types.Status`."""


class FitContext(NamedTuple):
    """What a study gives to all its methods, besides the problems.

    Attributes:
        kernel: compiled code that solves boxes, see :func:`rpo_theory.minimax.solve_batch`.
        seeds: seed of each problem, from which a method draws its random numbers, shape ``[b]``;
            None for seed 0 everywhere.
    """

    kernel: Kernel = "jax"
    seeds: Int[np.ndarray, " b"] | None = None


class FitResult(NamedTuple):
    r"""Fitted policies of a batch of problems, with certificates of how well each was solved.

    Attributes:
        policy: :math:`\hat\pi(a|x)`, shape ``[b x a]``; each row sums to one.
        reward: :math:`\hat r(x,a)`, shape ``[b x a]``; ``nan`` if the method has no reward.
        certificate: bound on the distance from optimality, at least 0, shape ``[b]``.
        certificate_kind: "duality_gap" for a proven bound on the objective, in nats or units of
            reward; "stationarity_residual" for the residual of the optimality conditions;
            "closed_form" for 0, because a formula was evaluated; "none" for NaN.
        status: codes of :class:`rpo_theory.types.Status`, or :data:`FAILED`, shape ``[b]``.
        messages: why fits failed, "" for those that did not; None if all have a policy.
    """

    policy: Float[np.ndarray, "b x a"]
    reward: Float[np.ndarray, "b x a"]
    certificate: Float[np.ndarray, " b"]
    certificate_kind: CertificateKind
    status: Int[np.ndarray, " b"]
    messages: Sequence[str] | None = None


MethodFunction = Callable[[Problem, RewardClass, Any, FitContext], FitResult]
"""Signature of a fit: problems, their reward classes, options of the method, and the context."""


class Method(NamedTuple):
    r"""A method of the studies.

    Attributes:
        name: its name in configurations; an identifier.
        fit: fits a batch of problems.
        title: its name in figures.
        options: dataclass of its options, a subclass of
            :class:`bandits.methods.options.MethodOptions`.
        uses_eta: whether it uses :math:`\eta`; if not, one fit serves all values of a study.
        uses_beta: whether it uses :math:`\beta`; if not, one fit serves all values of a study.
        bound: bound on its gap, shown for the baseline of the problem; None without one.
        source: function whose file a study's fingerprint contains; None for ``fit``.
    """

    name: str
    fit: MethodFunction
    title: str
    options: type = MethodOptions
    uses_eta: bool = True
    uses_beta: bool = True
    bound: BoundKind | None = None
    source: Any = None

    def __call__(
        self,
        problem: Problem,
        reward_class: RewardClass,
        *,
        context: FitContext = FitContext(),  # noqa: B008  # an immutable tuple
        **options: Any,
    ) -> FitResult:
        """Fit a batch of problems.

        Args:
            problem: instances, with a leading batch axis.
            reward_class: reward class of each problem, with the same leading axis.
            context: kernel and seeds; by default those of a method that is called by itself.
            options: options of the method by name.

        Returns:
            Policies with their certificates.

        Raises:
            ValueError: if the method does not have an option, or it is out of range.
        """
        return self.fit(problem, reward_class, self.make_options(options), context)

    def make_options(self, values: Mapping[str, Any] | MethodOptions) -> Any:
        """Return the options of the method from plain values.

        Args:
            values: options by name, or the options themselves.

        Raises:
            ValueError: if the method does not have an option, or it is out of range.
        """
        if isinstance(values, self.options):
            return values
        if isinstance(values, MethodOptions):
            got, wanted = type(values).__name__, self.options.__name__
            raise ValueError(f"`options` of {self.name} must be {wanted}, got {got}")
        try:
            return build(self.options, values)
        except ValueError as error:
            raise ValueError(f"`options` of {self.name}: {error}") from error

    @property
    def reference(self) -> str:
        """Text that stands for the method in a configuration: its name, or ``module:name``."""
        module = (self.source or self.fit).__module__
        is_built_in = self.source is None and module.startswith("bandits.methods.")
        return self.name if is_built_in else f"{module}:{self.name}"


def with_baseline(problem: Problem, options: BaselineOptions) -> Problem:
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
        >>> with_baseline(problem, BaselineOptions()).baseline_policy.tolist()
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
