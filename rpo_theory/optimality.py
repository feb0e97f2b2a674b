r"""Optimality conditions of :math:`\min_{r\in\mathcal R}F(r)` as equations for Newton's method.

Near a minimizer the conditions are equations: the active constraints hold with equality, and the
gradient vanishes along them. There are three kinds of conditions, for classes whose constraints are
bounds on single entries, classes with a smooth form, and classes with a projection only. Each has
the same three methods: which constraints are active at a point, the residual of the equations, and
the Newton step that removes a residual. :mod:`rpo_theory.sensitivity` differentiates the solution
with them, and polishes it: a derivative is the Newton step of the derivative of the residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from . import rewards, unbounded
from .certificate import reward_gradient
from .numerics.implicit_tangents import face_tangent, fixed_point_tangent, laplacian_tangent
from .objectives import minimax_objective
from .observations import n_observations
from .policies import gibbs_policy
from .preference import data_loss
from .rewards import AnyRewardClass, RewardClass
from .types import Problem, Solution, Status

TOUCHING = 1e-10
"""Relative distance from a constraint within which it is touched, and counts as active."""
RIDGE = 1e-14
"""Penalty on multipliers in their estimate, for constraints in natural units."""


def _objective_gradient(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
    r"""Return :math:`\nabla_r F`, the gradient against the best response."""
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    return reward_gradient(problem, policy, reward)


def _hessian_weights(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, "x a a"]:
    r"""Return the Hessian of :math:`F` as the edge weights of one graph Laplacian per context."""
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    sharpness = jnp.asarray(problem.eta / problem.beta) * jnp.asarray(problem.context_weights)
    policy_part = sharpness[:, None, None] * policy[:, :, None] * policy[:, None, :]
    if problem.choices is None and problem.ties is None:
        return policy_part + _pair_weights(jnp.asarray(problem.wins), reward)

    def column(entry: Float[Array, " a"]) -> Float[Array, "x a"]:
        move = jnp.broadcast_to(entry, reward.shape)
        return jax.jvp(jax.grad(lambda table: data_loss(problem, table)), (reward,), (move,))[1]

    columns = jax.vmap(column, out_axes=2)(jnp.eye(reward.shape[1], dtype=reward.dtype))
    return policy_part - columns


def _pair_weights(wins: Float[Array, "x a a"], reward: Float[Array, "x a"]) -> Array:
    margin = reward[:, :, None] - reward[:, None, :]
    variance = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    n_comparisons = wins.sum()
    share = (wins + wins.mT) / jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    return share * variance


def _solution(problem: Problem, reward: Float[Array, "x a"]) -> tuple[Array, Array, Array]:
    policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
    return policy, reward, minimax_objective(problem, reward)


def _context_scale(problem: Problem) -> Float[Array, " x"]:
    """Return the weight of each context: of its adversarial term plus its share of the data."""
    counts = jnp.asarray(problem.wins).sum(axis=(1, 2))
    if problem.ties is not None:
        counts = counts + jnp.asarray(problem.ties.counts).sum(axis=(1, 2))
    if problem.choices is not None:
        contexts = jnp.asarray(problem.choices.contexts).astype(jnp.int32)
        counts = counts.at[contexts].add(jnp.asarray(problem.choices.wins).sum(axis=1))
    n_data = n_observations(problem)
    adversary = problem.eta * jnp.asarray(problem.context_weights)
    scale = adversary + counts / jnp.where(n_data > 0, n_data, 1.0)
    return jnp.where(scale > 0, scale, 1.0)


class ActiveBounds(NamedTuple):
    """Entries of a table that are at a bound, and the multipliers there."""

    low: Bool[Array, "x a"]
    high: Bool[Array, "x a"]


@dataclass(frozen=True)
class BoundConditions:
    """Conditions for a class of tables between bounds, which separate over the contexts."""

    problem: Problem
    lower: Float[Array, "x a"]
    upper: Float[Array, "x a"]

    def point(self, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
        """Return a table whose entries are finite and between the bounds."""
        return jnp.clip(jnp.where(jnp.isfinite(reward), reward, 0.0), self.lower, self.upper)

    def solution(self, point: Float[Array, "x a"]) -> tuple[Array, Array, Array]:
        """Return policy, reward and value; rewards are centered between the bounds."""
        middle = 0.5 * (point.max(axis=-1) + point.min(axis=-1))
        # If a bound is active so is the other, and nothing moves.
        return _solution(self.problem, point + (0.5 * (self.lower + self.upper) - middle[:, None]))

    def active(self, point: Float[Array, "x a"]) -> ActiveBounds:
        """Return the entries at a bound: closer to it, in units of the box, than its multiplier."""
        pressure, unit = self._pressure(point), self._unit()
        pinned = self.upper <= self.lower
        low = pinned | ((point - self.lower) / unit <= pressure + TOUCHING)
        high = (self.upper - point) / unit <= TOUCHING - pressure
        return ActiveBounds(low, high & ~low)

    def error(self, point: Float[Array, "x a"]) -> Float[Array, ""]:
        """Return the largest move of a projected gradient step, in units of the box."""
        unit = self._unit()
        target = jnp.clip(point - unit * self._pressure(point), self.lower, self.upper)
        return jnp.max(jnp.abs(point - target) / unit)

    def residual(self, point: Float[Array, "x a"], active: ActiveBounds) -> Float[Array, "x a"]:
        """Return the gradient of free entries, and the distance of the others from their bound."""
        gradient = _objective_gradient(self.problem, point)
        below = point - jnp.where(active.low, self.lower, 0.0)
        above = point - jnp.where(active.high, self.upper, 0.0)
        return jnp.where(active.low, below, jnp.where(active.high, above, gradient))

    def step(
        self, point: Float[Array, "x a"], active: ActiveBounds, residual: Float[Array, "x a"]
    ) -> Float[Array, "x a"]:
        """Return the Newton step that removes a residual."""
        edge_weights = _hessian_weights(self.problem, point)
        fixed = active.low | active.high
        return jax.vmap(laplacian_tangent)(edge_weights, fixed, -residual, -residual)

    def _unit(self) -> Float[Array, "x a"]:
        width = self.upper - self.lower
        return jnp.where(jnp.isfinite(width) & (width > 0), width, 1.0)

    def _pressure(self, point: Float[Array, "x a"]) -> Float[Array, "x a"]:
        """Return the gradient in probabilities: divided by the weight of its context."""
        return _objective_gradient(self.problem, point) / _context_scale(self.problem)[:, None]


@dataclass(frozen=True)
class UnboundedConditions(BoundConditions):
    """Conditions for the class of all tables: those of its reduced problem."""

    reduced: unbounded.ReducedProblem

    def solution(self, point: Float[Array, "x a"]) -> tuple[Array, Array, Array]:
        """Return policy, reward with :math:`Z_r=1` and value; rewards may be infinite."""
        problem, reduced = self.problem, self.reduced
        reward = unbounded.normalized(reduced, point)
        policy = gibbs_policy(reward, problem.reference_policy, problem.beta)
        value = reduced.share * minimax_objective(problem, reward)
        solved = jnp.full((), Status.SOLVED.value)
        limit = unbounded.take_limit(reduced, Solution(policy, reward, value, solved, {}))
        return jnp.asarray(limit.policy), jnp.asarray(limit.reward), jnp.asarray(limit.objective)


class ActiveFace(NamedTuple):
    """Active constraints of a smooth form, and their multipliers by least squares."""

    constraints: Bool[Array, " c"]
    multipliers: Float[Array, " c"]


class FaceResidual(NamedTuple):
    """Gradient of the Lagrangian, and the slacks of the active constraints."""

    gradient: Float[Array, " m"]
    slack: Float[Array, " c"]


@dataclass(frozen=True)
class FaceConditions:
    """Conditions for a class with a smooth form, in its parameter."""

    problem: Problem
    reward_class: AnyRewardClass
    shape: tuple[int, ...]

    def point(self, reward: Float[Array, "x a"]) -> Float[Array, " m"]:
        """Return the parameter of a table."""
        return self.reward_class.to_parameter(reward)

    def solution(self, point: Float[Array, " m"]) -> tuple[Array, Array, Array]:
        """Return policy, reward and value of a parameter."""
        return _solution(self.problem, self.reward_class.to_reward(point, self.shape))

    def active(self, point: Float[Array, " m"]) -> ActiveFace:
        """Return the constraints whose slack is smaller than their multiplier, in natural units."""
        depth = self.reward_class.slack(self.reward_class.interior(self.shape))
        slack = self.reward_class.slack(point) / depth
        slopes = jax.jacfwd(self.reward_class.slack)(point) / depth[:, None]
        gradient = self._gradient(point)
        # Constraints with a large slack get a small multiplier; the ridge admits redundant ones.
        penalty = jnp.square(jnp.maximum(slack, 0.0)) + RIDGE
        estimate = jnp.linalg.solve(slopes @ slopes.T + jnp.diag(penalty), slopes @ gradient)
        pressure = estimate / self._unit(point)
        constraints = jax.lax.stop_gradient(slack <= jnp.maximum(TOUCHING, pressure))
        return ActiveFace(constraints, self._multipliers(point, constraints))

    def error(self, point: Float[Array, " m"]) -> Float[Array, ""]:
        """Return the largest violation of the equations or of an inactive constraint."""
        residual = self.residual(point, self.active(point))
        depth = self.reward_class.slack(self.reward_class.interior(self.shape))
        outside = jnp.maximum(-self.reward_class.slack(point), jnp.abs(residual.slack)) / depth
        return jnp.maximum(jnp.abs(residual.gradient).max() / self._unit(point), outside.max())

    def residual(self, point: Float[Array, " m"], active: ActiveFace) -> FaceResidual:
        """Return the gradient of the Lagrangian and the slacks of the active constraints."""
        slack, pull = jax.vjp(self.reward_class.slack, point)
        gradient = self._gradient(point) - pull(active.multipliers)[0]
        return FaceResidual(gradient, jnp.where(active.constraints, slack, 0.0))

    def step(
        self, point: Float[Array, " m"], active: ActiveFace, residual: FaceResidual
    ) -> Float[Array, " m"]:
        """Return the Newton step that removes a residual."""

        def lagrangian(point: Float[Array, " m"]) -> Float[Array, " m"]:
            return self.residual(point, active).gradient

        normals = self._normals(point, active.constraints)
        hessian = jax.jacfwd(lagrangian)(point)
        return face_tangent(hessian, normals, -residual.gradient, residual.slack)

    def _gradient(self, point: Float[Array, " m"]) -> Float[Array, " m"]:
        reward, pull = jax.vjp(lambda u: self.reward_class.to_reward(u, self.shape), point)
        return pull(_objective_gradient(self.problem, reward))[0]

    def _unit(self, point: Float[Array, " m"]) -> Float[Array, ""]:
        """Return the size of a gradient that is not small, from the weights of the contexts."""
        moves = jax.jacfwd(lambda u: self.reward_class.to_reward(u, self.shape))(point)
        size = jnp.einsum("x,xam->m", _context_scale(self.problem), jnp.abs(moves)).max()
        return jnp.where(size > 0, size, 1.0)

    def _normals(
        self, point: Float[Array, " m"], constraints: Bool[Array, " c"]
    ) -> Float[Array, "c m"]:
        return jnp.where(constraints[:, None], jax.jacfwd(self.reward_class.slack)(point), 0.0)

    def _multipliers(
        self, point: Float[Array, " m"], constraints: Bool[Array, " c"]
    ) -> Float[Array, " c"]:
        return jnp.linalg.pinv(self._normals(point, constraints)).T @ self._gradient(point)


@dataclass(frozen=True)
class ProjectionConditions:
    r"""Conditions :math:`r=P(r-t\nabla F)` for a class with a projection only."""

    problem: Problem
    reward_class: RewardClass

    def point(self, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
        """Return the table itself."""
        return reward

    def solution(self, point: Float[Array, "x a"]) -> tuple[Array, Array, Array]:
        """Return policy, reward and value of a table."""
        return _solution(self.problem, point)

    def error(self, point: Float[Array, "x a"]) -> Float[Array, ""]:
        """Return the largest move of a projected gradient step."""
        return jnp.abs(self.residual(point, self.active(point))).max()

    def active(self, point: Float[Array, "x a"]) -> Float[Array, ""]:
        """Return the step :math:`t` of the projection; 0 for a class that is not convex."""
        weights = jax.lax.stop_gradient(_hessian_weights(self.problem, point))
        largest = weights.sum(axis=-1).max()
        step = 1.0 / jnp.where(largest > 0, largest, 1.0)
        return step if rewards.is_convex(self.reward_class) else 0.0 * step

    def residual(self, point: Float[Array, "x a"], step: Float[Array, ""]) -> Float[Array, "x a"]:
        """Return the move of a projected gradient step."""
        target = point - step * _objective_gradient(self.problem, point)
        return point - self.reward_class.project(target)

    def step(
        self, point: Float[Array, "x a"], step: Float[Array, ""], residual: Float[Array, "x a"]
    ) -> Float[Array, "x a"]:
        """Return the Newton step that removes a residual."""

        def flat_residual(flat: Float[Array, " n"]) -> Float[Array, " n"]:
            return self.residual(flat.reshape(point.shape), step).reshape(-1)

        matrix = jax.jacfwd(flat_residual)(point.reshape(-1))
        return fixed_point_tangent(matrix, -residual.reshape(-1)).reshape(point.shape)


Conditions: TypeAlias = BoundConditions | FaceConditions | ProjectionConditions
"""Conditions of one of the three kinds."""


def conditions(problem: Problem, reward_class: AnyRewardClass) -> Conditions:
    """Return the optimality conditions of a problem, of the kind that its class allows.

    Args:
        problem: one problem, in float64, without a batch axis.
        reward_class: its reward class.

    Returns:
        Conditions for a table, or for the parameter of a class with a smooth form.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=0.0)
        >>> optimal = conditions(problem, rewards.TabularBox(4.0))
        >>> bool(optimal.error(jnp.array([[2.0 + np.log(3.0), 2.0]])) < 1e-12)
        True
    """
    shape = jnp.shape(problem.reference_policy)
    if not rewards.is_compact(reward_class):
        reduced = unbounded.reduce(problem)
        kept = jax.lax.stop_gradient(reduced.kept)
        infinity = jnp.where(kept, jnp.inf, 0.0)
        return UnboundedConditions(reduced.problem, -infinity, infinity, reduced)
    if hasattr(reward_class, "entry_bounds"):
        bounds = (jnp.broadcast_to(jnp.asarray(b), shape) for b in reward_class.entry_bounds())
        return BoundConditions(problem, *bounds)
    if rewards.is_smooth(reward_class):
        return FaceConditions(problem, reward_class, shape)
    return ProjectionConditions(problem, reward_class)
