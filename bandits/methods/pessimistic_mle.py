r"""Pessimistic maximum likelihood: the policy that is best against a confidence ellipsoid.

With :math:`r=\langle\theta,\phi\rangle`, :math:`\Sigma_D=\frac1N\sum_i(\phi_w-\phi_l)(\cdot)^\top`
and :math:`v=E_{d_0,\pi_{base}}\phi`, the method of `zhu:23` maximizes

.. math:: \hat J(\pi) = E_\pi\phi^\top\hat\theta_{MLE}
          - \varrho\,\big\|(\Sigma_D+\lambda I)^{-1/2}(E_\pi\phi-v)\big\|,\qquad
          \varrho = c\sqrt{\frac{d+\log(1/\delta)}{\gamma^2N}+\lambda B^2}.

The norm is a maximum over :math:`\theta` in an ellipsoid, so the dual is a convex function of
:math:`\theta` that is smooth except for kinks. Newton's method along a path minimizes it, and the
difference of the two objectives is the certificate. Tabular rewards are linear in the indicators of
prompt and response.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory._batching import group_size, map_in_groups
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import ArrayLike, Problem, Status

from . import path_following
from .base import (
    FitContext,
    FitResult,
    Method,
    mle_reward,
    require_box_or_ball,
    with_baseline,
)
from .options import BaselineOptions, check_number, check_option

GROUP = 1024  # entries of the win counts that are fitted at a time
GAP_TOLERANCE = 1e-6  # of SOLVED, relative to the range of the pessimistic rewards


class _Ellipsoid(NamedTuple):
    r"""Confidence set of a linear reward, as an affine image of the unit ball.

    Attributes:
        rewards: maximum likelihood rewards :math:`\phi^\top\hat\theta_{MLE}`, at the center.
        directions: :math:`\varrho\,\phi^\top(\Sigma_D+\lambda I)^{-1/2}`, the derivative of the
            rewards in a point of the unit ball.
    """

    rewards: Float[Array, "x a"]
    directions: Float[Array, "x a d"]


CurvatureOption = Literal["safe", "printed"]
"""Constant of pessimistic maximum likelihood."""


@dataclass(frozen=True, kw_only=True)
class PessimisticOptions(BaselineOptions):
    r"""Options of pessimistic maximum likelihood; its baseline is that of :math:`v`.

    Attributes:
        confidence: :math:`\delta`, probability that the confidence set misses the truth.
        pessimism: constant :math:`c` in the radius, at least 0.
        ridge: :math:`\lambda` in the covariance.
        curvature: :math:`\gamma`, the smallest derivative of the logistic function: "printed" as in
            the paper, or "safe" for all reward differences of the class.

    Raises:
        ValueError: if an option is out of range.
    """

    confidence: float = 0.1
    pessimism: float = 1.0
    ridge: float = 1e-3
    curvature: CurvatureOption = "safe"

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        BaselineOptions.__post_init__(self)
        check_option("curvature", self.curvature, get_args(CurvatureOption))
        check_number("pessimism", self.pessimism, least=0.0)
        check_number("ridge", self.ridge, above=0.0)
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"`confidence` must be a probability between 0 and 1, got {self.confidence}"
            )


def pessimistic_mle(
    problem: Problem, reward_class: RewardClass, options: PessimisticOptions, context: FitContext
) -> FitResult:
    r"""Fit the pessimistic maximum likelihood policy of Zhu, Jordan and Jiao.

    Args:
        problem: instances, with a leading batch axis; their :math:`\beta` and :math:`\eta` are
            ignored.
        reward_class: linear balls or tabular boxes, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies, within the support of the reference, and the rewards against which they are
        best. The certificate is an upper bound on :math:`\max_\pi\hat J(\pi)-\hat J(\hat\pi)`, in
        units of reward.

    Raises:
        ValueError: if the reward class is neither a tabular box nor a linear ball.

    References:
        `zhu:23`, Algorithm 1 and Theorem 3.2.
    """
    reward_class = require_box_or_ball("pessimistic_mle", reward_class)
    center = mle_reward(problem, reward_class, context.kernel)
    problem = with_baseline(problem, options)
    with jax.enable_x64(True):
        fit = partial(_fit, _settings(options))
    size = group_size(problem, GROUP)
    policy, reward, gap, solved = map_in_groups(fit, problem, reward_class, center, size=size)
    status = np.where(solved, Status.SOLVED.value, Status.MAX_STEPS.value)
    return FitResult(policy, reward, gap, "duality_gap", status)


def confidence_radius(
    reward_class: TabularBox | LinearBall,
    n_comparisons: Float[ArrayLike, ""],
    shape: tuple[int, int],
    *,
    confidence: Float[ArrayLike, ""] | float,
    pessimism: Float[ArrayLike, ""] | float,
    ridge: Float[ArrayLike, ""] | float,
    safe: Float[ArrayLike, ""] | float,
) -> Float[Array, ""]:
    r"""Return the radius :math:`\varrho` of the confidence ellipsoid.

    Args:
        reward_class: class that sets the dimension :math:`d`, the radius :math:`B` and
            :math:`L=\max\|\phi\|`. For the box, :math:`d=|X||A|`, :math:`B` is the distance from
            the center to a corner, and no reward difference exceeds :math:`R_{max}`.
        n_comparisons: number of comparisons :math:`N`; 0 counts as 1.
        shape: numbers of prompts and responses.
        confidence: probability :math:`\delta` that the ellipsoid misses the truth.
        pessimism: constant :math:`c`.
        ridge: regularization :math:`\lambda` of the covariance.
        safe: 1 for :math:`\gamma=\sigma'(2LB)`, which is valid for all reward differences; 0 for
            the printed :math:`\gamma=\sigma'(LB)=1/(2+e^{-LB}+e^{LB})`. Without effect on the box.

    Returns:
        The radius, in the norm of :math:`\Sigma_D+\lambda I`.

    References:
        `zhu:23`, Lemma 3.1.
    """
    match reward_class:
        case TabularBox(maximum):
            d, bound = shape[0] * shape[1], 0.5 * maximum * np.sqrt(shape[0] * shape[1])
            difference = jnp.asarray(maximum)
        case LinearBall(features, radius):
            features = jnp.asarray(features)
            d, bound = features.shape[-1], radius
            difference = (1.0 + safe) * radius * jnp.linalg.norm(features, axis=-1).max()
    slope = jax.nn.sigmoid(difference) * jax.nn.sigmoid(-difference)
    variance = (d - jnp.log(confidence)) / (slope**2 * jnp.maximum(jnp.asarray(n_comparisons), 1.0))
    return jnp.sqrt(variance + ridge * bound**2) * pessimism


def _settings(options: PessimisticOptions) -> tuple[Array, ...]:
    """Return the options as arrays, so that one compilation serves all of them."""
    safe = 1.0 if options.curvature == "safe" else 0.0
    numbers = (options.confidence, options.pessimism, options.ridge, safe)
    return tuple(jnp.asarray(number, jnp.float64) for number in numbers)


def _ellipsoid(
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    center: Float[Array, "x a"],
    delta: Float[Array, ""],
    pessimism: Float[Array, ""],
    ridge: Float[Array, ""],
    safe: Float[Array, ""],
) -> _Ellipsoid:
    wins = jnp.asarray(problem.wins)
    n_comparisons = wins.sum()
    pairs = (wins + wins.mT) / jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    shape = (wins.shape[0], wins.shape[1])
    laplacian = jax.vmap(jnp.diag)(pairs.sum(axis=2)) - pairs
    radius = confidence_radius(
        reward_class,
        n_comparisons,
        shape,
        confidence=delta,
        pessimism=pessimism,
        ridge=ridge,
        safe=safe,
    )
    match reward_class:
        case TabularBox():
            blocks = jax.vmap(lambda block: _inverse_root(block, ridge))(laplacian)
            matrix = jnp.einsum("xab,xy->xayb", blocks, jnp.eye(shape[0], dtype=blocks.dtype))
            return _Ellipsoid(center, radius * matrix.reshape(*shape, -1))
        case LinearBall(features, _):
            features = jnp.asarray(features)
            covariance = jnp.einsum("xad,xab,xbe->de", features, laplacian, features)
            return _Ellipsoid(center, radius * features @ _inverse_root(covariance, ridge))


def _inverse_root(matrix: Float[Array, "d d"], ridge: Float[Array, ""]) -> Float[Array, "d d"]:
    """Return the inverse square root of a matrix plus a multiple of the identity."""
    variance, axes = jnp.linalg.eigh(matrix)
    return (axes * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + ridge)) @ axes.T


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0, 0))
def _fit(
    settings: tuple[Array, ...],
    problem: Problem,
    reward_class: TabularBox | LinearBall,
    center: Float[Array, "x a"],
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Array]:
    return _fit_against(problem, _ellipsoid(problem, reward_class, center, *settings))


def _fit_against(
    problem: Problem, ellipsoid: _Ellipsoid
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""], Array]:
    """Return the best policy, the worst reward of the ellipsoid, the gap, and if it is small."""
    weights = jnp.asarray(problem.context_weights)[:, None]
    possible = jnp.asarray(problem.reference_policy) > 0
    baseline = jnp.asarray(problem.baseline_policy)
    reach = jnp.linalg.norm(ellipsoid.directions, axis=-1)
    size = jnp.abs(ellipsoid.rewards).max() + reach.max()
    size = jnp.where(size > 0, size, 1.0)

    def reward(point: Float[Array, " d"]) -> Float[Array, "x a"]:
        return ellipsoid.rewards + ellipsoid.directions @ point

    def baseline_shift(point: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(weights * baseline * (ellipsoid.directions @ point))

    def smoothed(point: Float[Array, " d"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        scaled = jnp.where(possible, reward(point) / (size * temperature), -jnp.inf)
        best = temperature * (weights[:, 0] @ jax.scipy.special.logsumexp(scaled, axis=1))
        barrier = -jnp.log1p(-point @ point)
        return best - baseline_shift(point) / size + temperature * barrier

    start = jnp.zeros(ellipsoid.directions.shape[-1], ellipsoid.rewards.dtype)
    path = path_following.follow_path(smoothed, start)
    worst = reward(path.point)
    scaled = jnp.where(possible, worst / (size * path.temperature), -jnp.inf)
    policy = jax.nn.softmax(scaled, axis=1)
    best = weights[:, 0] @ jnp.where(possible, worst, -jnp.inf).max(axis=1)
    excess = jnp.einsum("xa,xad->d", weights * (policy - baseline), ellipsoid.directions)
    reached = jnp.sum(weights * policy * ellipsoid.rewards) - jnp.linalg.norm(excess)
    gap = jnp.maximum(best - baseline_shift(path.point) - reached, 0.0)
    return policy, worst, gap, gap <= GAP_TOLERANCE * size


METHODS = (
    Method(
        "pessimistic_mle",
        pessimistic_mle,
        "pessimistic MLE",
        PessimisticOptions,
        uses_eta=False,
        uses_beta=False,
    ),
)
"""Methods of this module."""
