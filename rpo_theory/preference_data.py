"""Preference data beyond win counts: choices from sets, rankings, and ties."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .array_types import ArrayLike


class Choices(NamedTuple):
    r"""Counts of choices from sets of actions: the sufficient statistic of K-wise preferences.

    Under the Plackett-Luce model :math:`a` is chosen from the set :math:`S` with probability
    :math:`e^{r(x,a)}/\sum_{b\in S}e^{r(x,b)}`. A ranking of :math:`K` actions is a chain of
    :math:`K-1` choices: the best of all, the best of the others, and so on. The chain is one
    observation, so only its first choice counts in :math:`N`.

    Attributes:
        contexts: context of each set, shape ``[m]``.
        subsets: which actions are in the set, shape ``[m a]``; a set has at least two.
        wins: ``wins[i, a]`` counts the choices of ``a`` from set ``i``, shape ``[m a]``.
        first: whether the choices from the set are observations of their own, or the first choices
            of rankings; false for the later choices of rankings. Shape ``[m]``. A set that is both
            has two rows.
    """

    contexts: Int[ArrayLike, " m"] | Float[ArrayLike, " m"]
    subsets: Bool[ArrayLike, "m a"] | Float[ArrayLike, "m a"]
    wins: Float[ArrayLike, "m a"]
    first: Bool[ArrayLike, " m"] | Float[ArrayLike, " m"]


class DavidsonTies(NamedTuple):
    r"""Ties under the model of Davidson.

    .. math:: P(i\succ j) \propto e^{r_i}, \qquad P(i\sim j) \propto \nu\,e^{(r_i+r_j)/2}

    Attributes:
        counts: ``counts[x, i, j]``, the number of ties of ``i`` and ``j`` in context ``x``, shape
            ``[x a a]``; ``(i, j)`` and ``(j, i)`` are equivalent and add up.
        parameter: :math:`\nu > 0`; the smaller, the rarer are ties.

    References:
        `davidson:70`.
    """

    counts: Float[ArrayLike, "x a a"]
    parameter: Float[ArrayLike, ""] | float
    lower_limit = 0.0
    tie_weight = 0.5

    def win_loss(self, margin: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        r"""Return :math:`-\log P(i\succ j)` at the margin :math:`r_i-r_j`, nats."""
        margin = jnp.asarray(margin)
        tie = jnp.log(jnp.asarray(self.parameter)) - 0.5 * margin
        return jnp.logaddexp(jax.nn.softplus(-margin), tie)

    def tie_loss(self, margin: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        r"""Return :math:`-\log P(i\sim j)` at the margin :math:`r_i-r_j`, nats."""
        margin = jnp.asarray(margin)
        win = jax.nn.softplus(margin) - 0.5 * margin
        return jax.nn.softplus(win - jnp.log(jnp.asarray(self.parameter)))


class RaoKupperTies(NamedTuple):
    r"""Ties under the model of Rao and Kupper: a margin below a threshold is a tie.

    .. math:: P(i\succ j) = \sigma(r_i - r_j - \log\theta), \qquad
              P(i\sim j) = 1 - P(i\succ j) - P(j\succ i)

    Attributes:
        counts: ``counts[x, i, j]``, the number of ties of ``i`` and ``j`` in context ``x``, shape
            ``[x a a]``; ``(i, j)`` and ``(j, i)`` are equivalent and add up.
        parameter: :math:`\theta > 1`; the closer to 1, the rarer are ties.

    References:
        `rao:67`.
    """

    counts: Float[ArrayLike, "x a a"]
    parameter: Float[ArrayLike, ""] | float
    lower_limit = 1.0
    tie_weight = 1.0

    def win_loss(self, margin: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        r"""Return :math:`-\log P(i\succ j)` at the margin :math:`r_i-r_j`, nats."""
        return jax.nn.softplus(jnp.log(jnp.asarray(self.parameter)) - jnp.asarray(margin))

    def tie_loss(self, margin: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
        r"""Return :math:`-\log P(i\sim j)` at the margin :math:`r_i-r_j`, nats."""
        theta = jnp.asarray(self.parameter)
        excess = jnp.log(theta - 1.0) + jnp.log(theta + 1.0)
        return self.win_loss(margin) + self.win_loss(-jnp.asarray(margin)) - excess


Ties: TypeAlias = DavidsonTies | RaoKupperTies
"""Ties under one of the two models."""
TIE_MODELS: dict[str, type[DavidsonTies] | type[RaoKupperTies]] = {
    "davidson": DavidsonTies,
    "rao_kupper": RaoKupperTies,
}
"""Models of ties by name."""
