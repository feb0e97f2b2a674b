r"""Coverage coefficient :math:`C_{\mu_D}(\mathcal R;\pi,\pi_{base})`, exact for every reward class.

.. math:: C = \max\Big\{0, \sup_{r\in\mathcal R}
    \frac{E_{d_0,\pi,\pi_{base}}[(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))]}
    {\sqrt{E_{\mu_D}|(r^\star(a^1)-r^\star(a^0)) - (r(a^1)-r(a^0))|^2}}\Big\}

(`liu:24`, A 5.2). The ratio is constant along rays from :math:`r^\star`, so for a convex class only
the closed tangent cone at :math:`r^\star` matters. With :math:`v` the linear form of the numerator
and :math:`\Sigma` the quadratic form of the denominator,

.. math:: C^2 = 2\,\sup\{-\langle v,d\rangle - \tfrac12\langle d,\Sigma d\rangle:
          d \text{ in the cone}\}.

For tables :math:`\Sigma` is a graph Laplacian and the cone a list of sign constraints
(:mod:`rpo_theory.numerics.laplacian_qp`). For a linear ball the cone is the whole space or a
half-space, and the dual has one multiplier. Whether :math:`C` is infinite is decided by the
connected components of the data, not by the size of a number.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ._batching import map_in_groups, round_group_size
from .numerics.laplacian_qp import LaplacianQP, solve
from .rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from .types import ArrayLike
from .validation import (
    InvalidProblemError,
    validate_policy,
    validate_reward,
    validate_reward_class,
)

ROUNDOFF_ULPS = 64
"""Differences below this number of units in the last place count as rounding."""
BOUNDARY_TOLERANCE = 1e-9
"""Relative distance from the boundary of the ball within which a parameter lies on it."""
MEMBER_TOLERANCE = 1e-6
"""Accepted relative distance of the true reward from its class: rounding to seven digits."""
GROUP = 8192
"""Number of pairs of responses in one call of the compiled program."""


class _Query(NamedTuple):
    """Arguments of the coverage coefficient in float64, and their relative rounding error."""

    true_reward: Float[Array, "*B x a"]
    comparator: Float[Array, "*B x a"]
    baseline: Float[Array, "*B x a"]
    context_weights: Float[Array, "*B x"]
    pair_distribution: Float[Array, "*B x a a"]
    roundoff: Float[Array, "*B"]

    def weight(self) -> Float[Array, "x a"]:
        r"""Return the linear form :math:`v = d_0(\pi - \pi_{base})` on tables."""
        return self.context_weights[:, None] * (self.comparator - self.baseline)


class _Result(NamedTuple):
    """Coefficient, distance of the true reward from its class, and convergence of the solver."""

    coefficient: Float[Array, "*B"]
    misfit: Float[Array, "*B"]
    converged: Bool[Array, "*B"]


def coverage_coefficient(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "x a"],
    comparator: Float[ArrayLike, "x a"],
    baseline: Float[ArrayLike, "x a"],
    context_weights: Float[ArrayLike, " x"],
    pair_distribution: Float[ArrayLike, "x a a"],
) -> Float[np.ndarray, ""]:
    r"""Return the exact coverage coefficient of a comparator and a baseline policy.

    It is finite if and only if the data determine how much better the comparator is than the
    baseline, for all rewards of the class. Data about other policies are not needed. The
    computation is in float64 under any JAX configuration.

    Args:
        reward_class: :math:`\mathcal R`; the unbounded class needs data about every direction.
        true_reward: :math:`r^\star`, a member of the class.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: distribution :math:`\mu_D(x, a^1, a^0)` of the compared pairs. It is
            divided by its sum, so counts may be given. ``(i, j)`` and ``(j, i)`` are equivalent.

    Returns:
        :math:`C \in [0, \infty]`.

    Raises:
        InvalidProblemError: if a shape is wrong, a number is not finite, or probabilities do not
            sum to one.
        ValueError: if the true reward is not in the class, or a pair probability is negative.

    References:
        `liu:24`, Assumption 5.2.

    Examples:
        >>> first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> coefficient = coverage_coefficient(
        ...     TabularBox(1.0),
        ...     true_reward=np.array([[0.5, 0.5]]),
        ...     comparator=first,
        ...     baseline=second,
        ...     context_weights=np.ones(1),
        ...     pair_distribution=np.array([[[0.0, 1.0], [3.0, 0.0]]]),
        ... )
        >>> float(coefficient)
        1.0
    """
    class_batch = jax.tree.map(lambda field: np.asarray(field)[None], reward_class)
    arguments = {
        "true_reward": true_reward,
        "comparator": comparator,
        "baseline": baseline,
        "context_weights": context_weights,
        "pair_distribution": pair_distribution,
    }
    batch = {name: np.asarray(array)[None] for name, array in arguments.items()}
    return np.asarray(coverage_coefficient_batch(class_batch, **batch)[0])


def coverage_coefficient_batch(
    reward_class: RewardClass,
    *,
    true_reward: Float[ArrayLike, "B x a"],
    comparator: Float[ArrayLike, "B x a"],
    baseline: Float[ArrayLike, "B x a"],
    context_weights: Float[ArrayLike, "B x"],
    pair_distribution: Float[ArrayLike, "B x a a"],
) -> Float[np.ndarray, " B"]:
    r"""Return the coverage coefficients of a batch of instances; see :func:`coverage_coefficient`.

    Args:
        reward_class: reward classes with a leading batch axis; scalars apply to all.
        true_reward: :math:`r^\star`, a member of the class.
        comparator: :math:`\pi(a|x)`.
        baseline: :math:`\pi_{base}(a|x)`.
        context_weights: :math:`d_0(x)`.
        pair_distribution: distribution or counts of the compared pairs.

    Returns:
        :math:`C \in [0, \infty]` of each instance.

    Raises:
        InvalidProblemError: if a shape is wrong, a number is not finite, or probabilities do not
            sum to one; an index in the message begins with that of the instance.
        ValueError: if a true reward is not in its class, or a pair probability is negative.

    References:
        `liu:24`, Assumption 5.2.
    """
    shape = np.shape(true_reward)
    if len(shape) != 3 or 0 in shape:
        rule = f"must have one row per context and one column per action, got shape {shape[1:]}"
        raise InvalidProblemError("true_reward", (), rule)
    validate_reward("true_reward", true_reward, shape)
    validate_reward_class(reward_class, (shape[1], shape[2]), shape[:1])
    validate_policy("comparator", comparator, shape)
    validate_policy("baseline", baseline, shape)
    validate_policy("context_weights", context_weights, shape[:2])
    validate_reward("pair_distribution", pair_distribution, (*shape, shape[-1]))
    if np.any(np.asarray(pair_distribution) < 0):
        smallest = np.min(np.asarray(pair_distribution))
        raise ValueError(
            f"`pair_distribution` must be at least 0, got {smallest:.9g}: give frequencies"
        )
    rounded = (true_reward, comparator, baseline, context_weights, reward_class)
    roundoff = ROUNDOFF_ULPS * max(map(_eps, jax.tree.leaves(rounded)))
    with jax.enable_x64(True):
        query = _Query(
            jnp.asarray(true_reward, jnp.float64),
            _divided_by_sum(comparator, 1),
            _divided_by_sum(baseline, 1),
            _divided_by_sum(context_weights, 1),
            _divided_by_sum(pair_distribution, 3),
            jnp.full(shape[0], roundoff, jnp.float64),
        )
    # Memory grows with the number of members and features.
    per_table = [np.size(leaf) / np.size(true_reward) for leaf in jax.tree.leaves(reward_class)]
    per_instance = np.size(pair_distribution) / shape[0] * max([1.0, *per_table])
    size = round_group_size(GROUP / per_instance)
    result = map_in_groups(_coefficients, reward_class, query, size=size)
    _refuse_outsiders(result.misfit)
    if not np.all(result.converged):
        raise RuntimeError(
            "the active-set method of the coverage coefficient did not converge: "
            "please report the instance"
        )
    return np.asarray(result.coefficient, np.float64)


@jax.jit
@jax.vmap
def _coefficients(reward_class: RewardClass, query: _Query) -> _Result:
    truth = query.true_reward
    misfit = jnp.max(jnp.abs(reward_class.project(truth) - truth))
    converged = jnp.array(True)
    match reward_class:
        case TabularBox(maximum):
            edge = query.roundoff * maximum
            squared, converged = _tabular(query, truth <= edge, truth >= maximum - edge)
        case Unbounded():
            nowhere = jnp.zeros_like(truth, bool)
            squared, converged = _tabular(query, nowhere, nowhere)
        case LinearBall():
            squared = _ball(reward_class, query)
        case FiniteClass(rewards):
            squared = _finite(jnp.asarray(rewards), query)
    return _Result(jnp.sqrt(squared), misfit / (1.0 + jnp.max(jnp.abs(truth))), converged)


def _tabular(
    query: _Query, at_bottom: Bool[Array, "x a"], at_top: Bool[Array, "x a"]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Solve one Laplacian QP per context and return the squared coefficient."""
    frequency = query.pair_distribution
    diagonal = jnp.eye(frequency.shape[-1], dtype=bool)
    edge_weights = jnp.where(diagonal, 0.0, frequency + frequency.mT)
    problems = LaplacianQP(edge_weights, -query.weight(), at_bottom, at_top)
    squared, converged = jax.vmap(solve)(problems, query.roundoff * query.context_weights)
    return squared.sum(), jnp.all(converged)


def _ball(ball: LinearBall, query: _Query) -> Float[Array, ""]:
    r"""Return the squared coefficient for a linear ball.

    Inside the ball the tangent cone is the whole space, on its boundary the half-space
    :math:`\langle\theta^\star,d\rangle\le0`. Here :math:`\theta^\star` is the least-norm parameter:
    the class is the image of the ball in the row space of the features. By duality :math:`C^2` is
    the minimum of :math:`|v+\lambda\theta^\star|^2` in the norm of :math:`\Sigma^+` over the
    multipliers :math:`\lambda\ge0` for which :math:`v+\lambda\theta^\star` is in the range of
    :math:`\Sigma`, and infinite if there is none (Farkas).
    """
    features = jnp.asarray(ball.features)
    theta = ball.parameter(query.true_reward)
    v = jnp.einsum("xa,xad->d", query.weight(), features)
    size = jnp.einsum("xa,xa->", jnp.abs(query.weight()), jnp.linalg.norm(features, axis=-1))

    singular, axes = _data_axes(features, query.pair_distribution)
    seen = singular > query.roundoff * singular[0]
    inverse = jnp.where(seen, 1.0 / jnp.where(seen, singular, 1.0), 0.0)
    # Rounding rotates the axes by at most the ratio of the extreme singular values.
    axis_error = query.roundoff * jnp.maximum(1.0, singular[0] * inverse.max())
    v, theta = axes @ v, axes @ theta
    v_unseen = _unless_small(jnp.where(seen, 0.0, v), axis_error * size)
    theta_unseen = _unless_small(jnp.where(seen, 0.0, theta), axis_error * jnp.linalg.norm(theta))
    on_boundary = jnp.linalg.norm(theta) >= (1.0 - BOUNDARY_TOLERANCE) * ball.radius

    hidden = jnp.any(theta_unseen != 0)
    from_data = _multiplier(inverse * v, inverse * theta)
    multiplier = jnp.where(hidden, _multiplier(v_unseen, theta_unseen), from_data)
    multiplier = jnp.where(on_boundary, multiplier, 0.0)
    unseen = _unless_small(v_unseen + multiplier * theta_unseen, axis_error * size)
    squared = jnp.square(inverse * (v + multiplier * theta)).sum()
    return jnp.where(jnp.any(unseen != 0), jnp.inf, squared)


def _data_axes(
    features: Float[Array, "x a d"], pair_distribution: Float[Array, "x a a"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    r"""Return the square roots of the eigenvalues of :math:`\Sigma`, decreasing, and its axes.

    They are computed from the weighted feature differences, because forming :math:`\Sigma` would
    square the condition number. Axes are rows.
    """
    d = features.shape[-1]
    first, second = np.triu_indices(features.shape[1], 1)
    root = jnp.sqrt((pair_distribution + pair_distribution.mT)[:, first, second])
    rows = root[..., None] * (features[:, first] - features[:, second])
    # Zero rows make the triangular factor square if there are fewer pairs than features.
    rows = jnp.concatenate([rows.reshape(-1, d), jnp.zeros((d, d), rows.dtype)])
    _, singular, axes = jnp.linalg.svd(jnp.linalg.qr(rows, mode="r"))
    return singular, axes


def _unless_small(vector: Float[Array, " d"], tolerance: Float[Array, ""]) -> Float[Array, " d"]:
    """Return a vector, or zero if its norm is within the tolerance."""
    return jnp.where(jnp.linalg.norm(vector) > tolerance, vector, 0.0)


def _multiplier(form: Float[Array, " d"], normal: Float[Array, " d"]) -> Float[Array, ""]:
    r"""Return the :math:`\lambda\ge0` that minimizes the norm of ``form + lambda * normal``."""
    squared_norm = normal @ normal
    return jnp.maximum(0.0, -(form @ normal) / jnp.where(squared_norm > 0, squared_norm, 1.0))


def _finite(rewards: Float[Array, "k x a"], query: _Query) -> Float[Array, ""]:
    """Return the largest squared ratio of a member; 0/0 is 0, other divisions by 0 give inf."""
    truth = query.true_reward
    scale = jnp.maximum(jnp.abs(rewards).max(axis=(1, 2)), jnp.abs(truth).max())
    rounding = query.roundoff * scale
    shortfall = truth - rewards
    signed = jnp.einsum("xa,kxa->k", query.weight(), shortfall)
    difference = shortfall[:, :, :, None] - shortfall[:, :, None, :]
    difference = jnp.where(jnp.abs(difference) > rounding[:, None, None, None], difference, 0.0)
    seen = jnp.einsum("xij,kxij->k", query.pair_distribution, jnp.square(difference))
    ratio = jnp.where(seen > 0, jnp.square(signed) / jnp.where(seen > 0, seen, 1.0), jnp.inf)
    return jnp.max(jnp.where(signed > rounding, ratio, 0.0))


def _eps(array: ArrayLike) -> float:
    """Return the relative rounding error of an array; integers count as float64."""
    dtype = np.asarray(array).dtype
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float64).eps)


def _divided_by_sum(frequencies: Float[ArrayLike, "..."], axes: int) -> Float[Array, "..."]:
    """Divide frequencies by their sum over the last axes, in float64; zeros stay zeros."""
    frequencies = np.asarray(frequencies, np.float64)
    sums = frequencies.sum(axis=tuple(range(-axes, 0)), keepdims=True)
    return jnp.asarray(frequencies / np.where(sums > 0, sums, 1.0))


def _refuse_outsiders(misfit: Float[np.ndarray, " B"]) -> None:
    """Raise if a true reward is not in its class."""
    if np.any(misfit > MEMBER_TOLERANCE):
        instance = int(np.argmax(misfit))
        raise ValueError(
            f"`true_reward` must be in the reward class, got a relative distance of "
            f"{misfit[instance]:.3g} for instance {instance}: take a larger class or project it"
        )
