"""Ball of rewards in the space of a kernel."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory.array_checks import InvalidProblemError, greater_than_zero, numbers
from rpo_theory.types import ArrayLike, Problem

from .ball import LinearBall
from .exact_forms import FeatureBall
from .protocol import Minimum

NEGATIVE = 1e-8
"""Largest negative eigenvalue of a Gram matrix that counts as rounding, relative to the largest."""


class KernelBall(NamedTuple):
    r"""Class of rewards in the ball of radius :math:`B` of a kernel's Hilbert space.

    It is the :class:`LinearBall` whose features are the Cholesky factor of the Gram matrix: for a
    regular matrix, the tables with :math:`r^\top K^{-1}r\le B^2`. The matrix may be singular.

    Attributes:
        gram: kernel :math:`K` between pairs of a context and an action, shape ``[n n]``; the pair
            of context ``x`` and action ``a`` has number ``x * n_actions + a``.
        radius: :math:`B > 0`.

    Examples:
        >>> nearest = KernelBall(np.eye(2), 1.0).project(np.array([[3.0, 4.0]]))
        >>> np.asarray(nearest).round(6).tolist()
        [[0.6, 0.8]]
    """

    gram: Float[ArrayLike, "n n"]
    radius: Float[ArrayLike, ""] | float

    solves_only_wins = True

    @property
    def reward_max(self) -> Float[Array, "*B"]:
        r"""Largest difference of two rewards, :math:`B\max\sqrt{K_{ii}+K_{jj}-2K_{ij}}`."""
        gram = jnp.asarray(self.gram)
        sizes = jnp.diagonal(gram, axis1=-2, axis2=-1)
        squared = sizes[..., :, None] + sizes[..., None, :] - 2.0 * gram
        longest = jnp.sqrt(jnp.maximum(squared.max(axis=(-2, -1)), 0.0))
        return longest * jnp.asarray(self.radius)

    def features(self, shape: tuple[int, int]) -> Float[Array, "x a n"]:
        """Return Cholesky features, whose inner products are the Gram matrix.

        Args:
            shape: number of contexts and of actions.

        Examples:
            >>> KernelBall(4.0 * np.eye(2), 1.0).features((1, 2)).tolist()
            [[[2.0, 0.0], [0.0, 2.0]]]
        """
        return pivoted_cholesky(jnp.asarray(self.gram)).reshape(*shape, -1)

    def project(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        """Return the nearest member of the class in Euclidean distance."""
        return self._ball(np.shape(reward)).project(reward)

    def linear_minimizer(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
        r"""Return the member that minimizes :math:`\langle v,r\rangle`."""
        return self._ball(np.shape(direction)).linear_minimizer(direction)

    def linear_minimum(self, direction: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
        r"""Return the minimum of :math:`\langle v,r\rangle`, :math:`-B\sqrt{v^\top Kv}`."""
        return self._ball(np.shape(direction)).linear_minimum(direction)

    def linear_gap(
        self, direction: Float[ArrayLike, "x a"], reward: Float[ArrayLike, "x a"]
    ) -> Float[Array, ""]:
        """Bound the linear gap of a member from above."""
        return self._ball(np.shape(direction)).linear_gap(direction, reward)

    def interior(self, shape: tuple[int, int]) -> Float[Array, " m"]:
        """Return the parameter of the center of the ball, zeros."""
        return self._ball(shape).interior(shape)

    def to_reward(
        self, parameter: Float[ArrayLike, " m"], shape: tuple[int, int]
    ) -> Float[Array, "x a"]:
        """Return the table of a parameter in the unit ball."""
        return self._ball(shape).to_reward(parameter, shape)

    def to_parameter(self, reward: Float[ArrayLike, "x a"]) -> Float[Array, " m"]:
        """Return the parameter of smallest norm of a table, in units of the radius."""
        return self._ball(np.shape(reward)).to_parameter(reward)

    def slack(self, parameter: Float[ArrayLike, " m"]) -> Float[Array, " 1"]:
        r"""Return :math:`1-\|u\|^2`."""
        return (1.0 - jnp.square(jnp.asarray(parameter)).sum())[None]

    def minimize(
        self,
        problem: Problem,
        policy: Float[ArrayLike, "x a"] | None = None,
        *,
        tolerance: float,
        max_steps: int,
    ) -> Minimum:
        """Minimize as :class:`LinearBall` does; see :mod:`rpo_theory.routes`."""
        ball = self._ball(np.shape(problem.reference_policy))
        return ball.minimize(problem, policy, tolerance=tolerance, max_steps=max_steps)

    def linear_form(
        self, shape: tuple[int, int]
    ) -> tuple[Float[ArrayLike, "x a d"], Float[ArrayLike, ""] | float]:
        """Return Cholesky features and radius, for methods on the parameter."""
        return self.features(shape), self.radius

    def exact_form(self, shape: tuple[int, int]) -> FeatureBall:
        """Return Cholesky features and Gram matrix for a proof in ball arithmetic.

        Members are those of the features in float64. Minima cover the ball of the features and that
        of the Gram matrix, which differ by the rounding of the factorization.
        """
        with jax.enable_x64(True):
            features = np.asarray(self.features(shape), np.float64)
        gram = np.asarray(self.gram, np.float64)
        return FeatureBall(features, float(self.radius), gram)

    def log_covering_number(self, epsilon: float) -> float:
        r"""Return the log of :math:`(1+2BL/\epsilon)^d` with :math:`L^2=\max K_{ii}`.

        The class is a linear ball in as many dimensions as the Gram matrix has rank.
        """
        gram = np.asarray(self.gram, np.float64)
        longest = float(np.sqrt(np.diag(gram).max()))
        rank = int(np.linalg.matrix_rank(gram, hermitian=True))
        return rank * float(np.log1p(2 * float(self.radius) * longest / epsilon))

    def check_fields(
        self, shape: tuple[int, int], lead: tuple[int, ...] = (), *, finite: bool = True
    ) -> None:
        """Raise unless the Gram matrix is that of a kernel; see :func:`validate_reward_class`."""
        n = shape[0] * shape[1]
        gram = numbers("reward_class.gram", self.gram, (*lead, n, n), finite=finite)
        greater_than_zero("reward_class.radius", self.radius, lead, finite=finite)
        if not np.isfinite(gram).all():
            return
        scale = np.abs(gram).max(axis=(-2, -1), keepdims=True)
        wrong = np.abs(gram - gram.swapaxes(-1, -2)) > NEGATIVE * scale
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            rule = f"must be symmetric, got {gram[index]:.9g} and another mirrored entry"
            raise InvalidProblemError("reward_class.gram", index, rule)
        lowest = np.linalg.eigvalsh(gram)[..., 0]
        wrong = lowest < -NEGATIVE * np.maximum(scale[..., 0, 0], np.finfo(np.float64).tiny)
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            rule = f"must be positive semi-definite, got an eigenvalue of {lowest[index]:.9g}"
            raise InvalidProblemError("reward_class.gram", index, rule)

    def _ball(self, shape: tuple[int, ...]) -> LinearBall:
        return LinearBall(self.features((shape[0], shape[1])), self.radius)


@jax.jit
def pivoted_cholesky(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
    r"""Return a factor :math:`F` with :math:`FF^\top=K`, by Cholesky's method with pivoting.

    Args:
        gram: symmetric, positive semi-definite matrix; it may be singular.

    Returns:
        The factor; columns beyond the numerical rank are zero. It is differentiable where the rank
        does not change.

    Examples:
        >>> pivoted_cholesky(jnp.array([[4.0, 2.0], [2.0, 1.0]])).tolist()
        [[2.0, 0.0], [1.0, 0.0]]
    """
    n = gram.shape[0]
    smallest = n * jnp.finfo(gram.dtype).eps * jnp.abs(jnp.diag(gram)).max()

    def eliminate(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = carry
        pivot = jnp.argmax(jnp.diag(rest))
        size = rest[pivot, pivot]
        has_rank = size > smallest
        column = rest[:, pivot] / jnp.sqrt(jnp.where(has_rank, size, 1.0))
        column = jnp.where(has_rank, column, 0.0)
        rest = rest - jnp.outer(column, column)
        # What is left of an eliminated row is rounding.
        rest = jnp.where(has_rank & (jnp.arange(n) == pivot)[:, None], 0.0, rest)
        rest = jnp.where(has_rank & (jnp.arange(n) == pivot)[None, :], 0.0, rest)
        return rest, factor.at[:, k].set(column)

    return jax.lax.fori_loop(0, n, eliminate, (gram, jnp.zeros_like(gram)))[1]
