r"""Squared coverage coefficients over the tangent cone of a reward class, with derivatives.

With :math:`v` the linear form and :math:`\Sigma` the quadratic form of the coefficient,

.. math:: C^2 = 2\,\sup\{-\langle v,d\rangle - \tfrac12\langle d,\Sigma d\rangle:
          d \text{ in the tangent cone at } r^\star\}.

====================== =======================================================================
class                  cone and method
====================== =======================================================================
bounds on entries      sign constraints; one Laplacian program per context
one smooth constraint  the whole space or a half-space; the dual has one multiplier
smooth form            active constraints; :mod:`rpo_theory.numerics.cone_qp`
list of members        the definition itself
projection only        :math:`P_T(w)=\lim_{t\to0}(P(r^\star+tw)-r^\star)/t`, at a small :math:`t`
====================== =======================================================================

On the active constraints of the maximizer the supremum is a smooth function, whose derivatives of
all orders follow. With a projection only, the envelope theorem gives the first derivative in the
policies, the weights and the pairs; the class and the true reward count as constant. Where the
coefficient is 0 or infinite its derivative is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from . import rewards
from .array_checks import InvalidProblemError
from .numerics import cone_qp, projected_minimization
from .numerics.implicit_tangents import RANK_TOLERANCE, face_tangent, laplacian_tangent
from .numerics.laplacian_qp import LaplacianQP, solve
from .numerics.projected_minimization import ProjectedProblem
from .rewards import AnyRewardClass, RewardClass
from .types import ArrayLike

BOUNDARY_TOLERANCE = 1e-9
"""Relative distance from a constraint within which the true reward lies on it."""
RAY = 1e-5
"""Relative length of the step whose projection stands in for that onto the tangent cone."""
FAR = 1e-2
"""Relative distance from the true reward that only an unbounded maximizer reaches."""
MAX_ROUNDS = 200


class Query(NamedTuple):
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


class Squared(NamedTuple):
    """Squared coefficient, and whether the method converged."""

    value: Float[Array, "*B"]
    converged: Bool[Array, "*B"]


def squared_coefficient(reward_class: AnyRewardClass, query: Query) -> Squared:
    """Return the squared coefficient of one instance, by the method that its class allows.

    Args:
        reward_class: the reward class.
        query: the other arguments, in float64.

    Raises:
        InvalidProblemError: if a class is neither convex nor a list of members.
    """
    if not rewards.is_convex(reward_class):
        return Squared(_over_members(_members(reward_class), query), jnp.array(True))
    if has_entry_constraints(reward_class):
        at_bounds = entry_constraints(reward_class, query.true_reward, query.roundoff)
        return _over_tables(query, *at_bounds)
    if rewards.is_smooth(reward_class):
        return _over_smooth_form(reward_class, query)
    return _over_projection(reward_class, query)


def has_entry_constraints(reward_class: AnyRewardClass) -> bool:
    """Return whether the tangent cones of a class are given by signs of single entries."""
    bounded = hasattr(reward_class, "entry_bounds") or not rewards.is_compact(reward_class)
    return rewards.is_convex(reward_class) and bounded


def entry_constraints(
    reward_class: AnyRewardClass, true_reward: Float[ArrayLike, "x a"], roundoff: Float[Array, ""]
) -> tuple[Bool[Array, "x a"], Bool[Array, "x a"]]:
    """Return the entries that are at their lower bound, and those at their upper bound.

    Args:
        reward_class: class for which :func:`has_entry_constraints` holds.
        true_reward: a member.
        roundoff: relative distance from a bound within which an entry is at it.
    """
    truth = jnp.asarray(true_reward)
    if not rewards.is_compact(reward_class):
        nowhere = jnp.zeros_like(truth, bool)
        return nowhere, nowhere
    lower, upper = reward_class.entry_bounds()
    edge = roundoff * (jnp.asarray(upper) - lower)
    return truth <= lower + edge, truth >= upper - edge


def _members(reward_class: RewardClass) -> Float[Array, "k x a"]:
    members = getattr(reward_class, "members", None)
    if members is None:
        kind = type(reward_class).__name__
        rule = f"must be convex or have `members`, the list of its tables, got {kind}"
        raise InvalidProblemError("reward_class", (), rule)
    return jnp.asarray(members)


def _with_derivative(value: Float[Array, ""], formula: Float[Array, ""]) -> Float[Array, ""]:
    """Return a value with the derivatives of a formula that equals it up to rounding."""
    value = jax.lax.stop_gradient(value)
    formula = jnp.where(jnp.isfinite(value), formula, 0.0)
    return value + (formula - jax.lax.stop_gradient(formula))


def _over_tables(
    query: Query, at_bottom: Bool[Array, "x a"], at_top: Bool[Array, "x a"]
) -> Squared:
    """Solve one Laplacian program per context."""
    frequency = query.pair_distribution
    diagonal = jnp.eye(frequency.shape[-1], dtype=bool)
    edge_weights = jnp.where(diagonal, 0.0, frequency + frequency.mT)
    problems = LaplacianQP(edge_weights, -query.weight(), at_bottom, at_top)
    roundoff = query.roundoff * query.context_weights
    found = jax.vmap(solve)(*jax.lax.stop_gradient((problems, roundoff)))
    # Nodes are held at zero by their constraints; the derivative keeps them there.
    point = jax.vmap(laplacian_tangent)(
        edge_weights, found.active, problems.linear, jnp.zeros_like(problems.linear)
    )
    formula = jnp.sum(problems.linear * point)
    return Squared(_with_derivative(found.objective.sum(), formula), found.converged.all())


def _over_smooth_form(reward_class: AnyRewardClass, query: Query) -> Squared:
    """Solve the program over the active constraints at the parameter of the true reward."""
    shape = query.true_reward.shape
    center = jnp.zeros_like(reward_class.interior(shape))
    slopes = jax.jacfwd(lambda u: reward_class.to_reward(u, shape))(center)
    offset = query.true_reward - reward_class.to_reward(center, shape)
    inverse = jnp.linalg.pinv(slopes.reshape(-1, center.size), rtol=RANK_TOLERANCE)
    parameter = inverse @ offset.reshape(-1)
    rows = jax.jacfwd(reward_class.slack)(parameter)
    depth = reward_class.slack(reward_class.interior(shape))
    touched = (
        reward_class.slack(parameter) <= jnp.maximum(BOUNDARY_TOLERANCE, query.roundoff) * depth
    )
    rows = jnp.where(touched[:, None], rows, 0.0)

    linear = jnp.einsum("xa,xam->m", query.weight(), slopes)
    differences = _data_rows(slopes, query.pair_distribution)
    quadratic = differences.T @ differences
    frozen = jax.lax.stop_gradient((quadratic, linear, rows, slopes, query))
    if rows.shape[0] == 1:
        value, multipliers = _over_half_space(*frozen[2:])
    else:
        found = cone_qp.active_rows(*frozen[:3])
        multipliers = found.multipliers
        value = jnp.where(found.bounded, 0.0, jnp.inf)
    active = jnp.where((multipliers > 0)[:, None], rows, 0.0)
    point = face_tangent(quadratic, active, -linear, jnp.zeros_like(multipliers))
    formula = -(linear @ point)
    if rows.shape[0] > 1:
        value = jnp.maximum(value, jnp.where(jnp.isfinite(value), formula, 0.0))
    return Squared(_with_derivative(value, formula), jnp.array(True))


def _over_half_space(
    normal: Float[Array, "1 m"], slopes: Float[Array, "x a m"], query: Query
) -> tuple[Float[Array, ""], Float[Array, " 1"]]:
    r"""Return the squared coefficient for at most one linear constraint, and its multiplier.

    By duality :math:`C^2` is the minimum of :math:`|v-\lambda n|^2` in the norm of
    :math:`\Sigma^+` over the multipliers :math:`\lambda\ge0` for which :math:`v-\lambda n` is in
    the range of :math:`\Sigma`, and infinite if there is none (Farkas).
    """
    linear = jnp.einsum("xa,xam->m", query.weight(), slopes)
    size = jnp.einsum("xa,xa->", jnp.abs(query.weight()), jnp.linalg.norm(slopes, axis=-1))
    singular, axes = _data_axes(slopes, query.pair_distribution)
    seen = singular > query.roundoff * singular[0]
    inverse = jnp.where(seen, 1.0 / jnp.where(seen, singular, 1.0), 0.0)
    # Rounding rotates the axes by at most the ratio of the extreme singular values.
    axis_error = query.roundoff * jnp.maximum(1.0, singular[0] * inverse.max())
    v, outward = axes @ linear, axes @ -normal[0]
    v_unseen = _unless_small(jnp.where(seen, 0.0, v), axis_error * size)
    rounding = axis_error * jnp.linalg.norm(outward)
    outward_unseen = _unless_small(jnp.where(seen, 0.0, outward), rounding)

    hidden = jnp.any(outward_unseen != 0)
    from_data = _multiplier(inverse * v, inverse * outward)
    multiplier = jnp.where(hidden, _multiplier(v_unseen, outward_unseen), from_data)
    unseen = _unless_small(v_unseen + multiplier * outward_unseen, axis_error * size)
    squared = jnp.square(inverse * (v + multiplier * outward)).sum()
    return jnp.where(jnp.any(unseen != 0), jnp.inf, squared), multiplier[None]


def _data_axes(
    slopes: Float[Array, "x a m"], pair_distribution: Float[Array, "x a a"]
) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    r"""Return the square roots of the eigenvalues of :math:`\Sigma`, decreasing, and its axes.

    They are computed from the weighted differences, because forming :math:`\Sigma` would square the
    condition number. Axes are rows.
    """
    rows = _data_rows(slopes, pair_distribution)
    d = rows.shape[-1]
    # Zero rows make the triangular factor square if there are fewer pairs than parameters.
    rows = jnp.concatenate([rows, jnp.zeros((d, d), rows.dtype)])
    _, singular, axes = jnp.linalg.svd(jnp.linalg.qr(rows, mode="r"))
    return singular, axes


def _data_rows(
    slopes: Float[Array, "x a m"], pair_distribution: Float[Array, "x a a"]
) -> Float[Array, "p m"]:
    r"""Return the differences of each pair times the root of its frequency: a root of Sigma."""
    first, second = np.triu_indices(slopes.shape[1], 1)
    frequency = (pair_distribution + pair_distribution.mT)[:, first, second]
    positive = frequency > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, frequency, 1.0)), 0.0)
    rows = root[..., None] * (slopes[:, first] - slopes[:, second])
    return rows.reshape(-1, slopes.shape[-1])


def _unless_small(vector: Float[Array, " m"], tolerance: Float[Array, ""]) -> Float[Array, " m"]:
    """Return a vector, or zero if its norm is within the tolerance."""
    return jnp.where(jnp.linalg.norm(vector) > tolerance, vector, 0.0)


def _multiplier(form: Float[Array, " m"], normal: Float[Array, " m"]) -> Float[Array, ""]:
    r"""Return the :math:`\lambda\ge0` that minimizes the norm of ``form + lambda * normal``."""
    squared_norm = normal @ normal
    return jnp.maximum(0.0, -(form @ normal) / jnp.where(squared_norm > 0, squared_norm, 1.0))


def _over_members(rewards: Float[Array, "k x a"], query: Query) -> Float[Array, ""]:
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


def _over_projection(reward_class: RewardClass, query: Query) -> Squared:
    """Minimize over the class, magnified around the true reward until it looks like its cone.

    For a polyhedron the result is exact; a boundary of curvature k changes it by about k times
    :data:`RAY`, relatively. The coefficient counts as infinite if the maximizer is far away.
    """
    truth, frozen = jax.lax.stop_gradient((query.true_reward, reward_class))
    width = 1.0 + jnp.abs(truth).max()
    step = RAY * width

    def objective(query: Query, move: Float[Array, "x a"]) -> Float[Array, ""]:
        difference = move[:, :, None] - move[:, None, :]
        seen = jnp.sum(query.pair_distribution * jnp.square(difference))
        return jnp.vdot(query.weight(), move) + 0.5 * seen

    fixed = jax.lax.stop_gradient(query)
    cone = ProjectedProblem(
        objective=lambda move: objective(fixed, move),
        project=lambda move: (frozen.project(truth + step * move) - truth) / step,
        linear_minimizer=lambda form: (frozen.linear_minimizer(form) - truth) / step,
    )
    minimum = projected_minimization.solve(
        cone, jnp.zeros_like(truth), tolerance=1e-14, max_steps=MAX_ROUNDS
    )
    move = jax.lax.stop_gradient(minimum.point)
    squared = jnp.maximum(-2.0 * objective(query, move), 0.0)
    far = step * jnp.abs(move - move.mean(axis=1, keepdims=True)).max() > FAR * width
    return Squared(jnp.where(far, jnp.inf, squared), jnp.array(True))
