r"""Models of preferences: probabilities, likelihood, win counts and sampling.

Pairs follow the Bradley-Terry model :math:`P_r(y=1|x,a^1,a^0) = \sigma(r(x,a^1) - r(x,a^0))`
(`liu:24`, eq. 2.1), choices from larger sets the Plackett-Luce model, and pairs with ties the model
of Davidson or of Rao and Kupper. On finitely many actions the average negative log-likelihood
:math:`L_D` (eq. 3.2) depends on the data only through counts, so no computation here grows with
the number of observations. In all models it is convex in the reward, and a constant added to the
rewards of a context changes nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Int, Key

from .observations import n_observations
from .preference_data import Choices, Ties
from .types import ArrayLike, Problem


def preference_probability(
    reward_first: Float[ArrayLike, "*#s"], reward_second: Float[ArrayLike, "*#s"]
) -> Float[Array, "*#s"]:
    r"""Return the probability :math:`\sigma(r_1 - r_0)` that the first response is preferred.

    Args:
        reward_first: reward of the first response.
        reward_second: reward of the second response.

    Returns:
        Probabilities in [0, 1].

    References:
        `liu:24`, eq. 2.1.

    Examples:
        >>> float(preference_probability(jnp.array(1.0), jnp.array(1.0)))
        0.5
    """
    return jax.nn.sigmoid(jnp.asarray(reward_first) - jnp.asarray(reward_second))


def win_counts(
    contexts: Int[ArrayLike, " n"],
    winners: Int[ArrayLike, " n"],
    losers: Int[ArrayLike, " n"],
    counts: Float[ArrayLike, " n"],
    *,
    shape: tuple[int, int],
) -> Float[Array, "x a a"]:
    """Sum comparisons into ``wins[x, w, l]``, the sufficient statistic of Bradley-Terry data.

    Args:
        contexts: context index of each row.
        winners: action index of the preferred response.
        losers: action index of the other response.
        counts: number of times that the comparison occurred; may be fractional.
        shape: number of contexts and number of actions.

    Returns:
        Counts of shape ``[x a a]`` with the dtype of ``counts``; equal rows add up.

    Raises:
        ValueError: if the rows differ in number or an index is out of range; the message names
            the argument. Traced arrays are not checked.

    Examples:
        >>> i = jnp.array([0, 0])
        >>> win_counts(i, i, i + 1, jnp.ones(2), shape=(1, 2)).tolist()
        [[[0.0, 2.0], [0.0, 0.0]]]
    """
    n_contexts, n_actions = shape
    counts = jnp.asarray(counts)
    columns = {"contexts": contexts, "winners": winners, "losers": losers}
    for name, column in columns.items():
        _check_indices(name, column, n_contexts if name == "contexts" else n_actions, counts.shape)
    zero = jnp.zeros((n_contexts, n_actions, n_actions), counts.dtype)
    return zero.at[contexts, winners, losers].add(counts)


def _check_indices(name: str, column: ArrayLike, bound: int, shape: tuple[int, ...]) -> None:
    """Raise unless there is one index per row; a scatter drops indices that are out of range."""
    if isinstance(column, Tracer):
        return
    indices = np.asarray(column)
    if indices.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape} like `counts`, got {indices.shape}")
    if indices.size == 0:
        return
    if indices.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must hold whole numbers, got {indices.dtype}")
    wrong = np.flatnonzero((indices < 0) | (indices >= bound))
    if wrong.size:
        rule = f"must be an index from 0 to {bound - 1}, got {indices[wrong[0]]}"
        raise ValueError(f"`{name}[{wrong[0]}]` {rule}")


def negative_log_likelihood(
    reward: Float[ArrayLike, "x a"], wins: Float[ArrayLike, "x a a"]
) -> Float[Array, ""]:
    r"""Return the average negative log-likelihood :math:`L_D(r)` of the comparisons.

    .. math::
        L_D(r) = -\frac1N \sum_{x,w,l} W_{xwl} \log\sigma(r(x,w) - r(x,l))

    Args:
        reward: :math:`r(x,a)`.
        wins: win counts, indexed by context, winner and loser.

    Returns:
        Nats per comparison, at least 0; exactly 0 without data.

    References:
        `liu:24`, eq. 3.2.

    Examples:
        >>> wins = jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> round(float(negative_log_likelihood(jnp.zeros((1, 2)), wins)), 4)
        0.6931
    """
    wins = jnp.asarray(wins)
    n_comparisons = wins.sum()
    loss = _pair_loss(jnp.asarray(reward), wins, None)
    safe_count = jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    return jnp.where(n_comparisons > 0, loss / safe_count, 0.0)


def data_loss(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, ""]:
    r"""Return the average negative log-likelihood :math:`L_D(r)` of all data of a problem.

    It is the sum over the comparisons, ties and choices of the problem, divided by the number
    :math:`N` of observations, in which a ranking counts once.

    Args:
        problem: preference data, policies and weights.
        reward: :math:`r(x,a)`.

    Returns:
        Nats per observation, at least 0; exactly 0 without data.

    References:
        `liu:24`, eq. 3.2, for comparisons; `plackett:75` for choices and rankings.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> round(float(data_loss(problem, jnp.zeros((1, 2)))), 4)
        0.6931
    """
    if problem.choices is None and problem.ties is None:
        return negative_log_likelihood(reward, problem.wins)
    reward = jnp.asarray(reward)
    loss = _pair_loss(reward, jnp.asarray(problem.wins), problem.ties)
    if problem.choices is not None:
        loss = loss + _choices_loss(reward, problem.choices)
    n_data = n_observations(problem)
    return jnp.where(n_data > 0, loss / jnp.where(n_data > 0, n_data, 1.0), 0.0)


def evidence(problem: Problem, reward: Float[ArrayLike, "x a"]) -> Float[Array, "x a"]:
    r"""Return the remaining evidence of the data for each action, :math:`-N\,\nabla L_D(r)`.

    For a comparison it is the surprise :math:`1-\sigma(d)` of the winner, minus that of the loser.
    For a choice it is :math:`1\{a\text{ chosen}\}` minus the probability of :math:`a`.

    Args:
        problem: preference data, policies and weights.
        reward: :math:`r(x,a)`, ``-inf`` where it diverges. Between two rewards of minus infinity
            the evidence balances.

    Returns:
        Evidence in observations; rows sum to zero.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> evidence(problem, jnp.zeros((1, 2))).tolist()
        [[1.0, -1.0]]
    """
    reward, wins = jnp.asarray(reward), jnp.asarray(problem.wins)
    if problem.ties is None:
        disadvantage = reward[:, None, :] - reward[:, :, None]
        # Between two rewards of minus infinity (difference NaN) wins and losses balance.
        surprise = jnp.where(jnp.isnan(disadvantage), 0.0, jax.nn.sigmoid(disadvantage))
        flow = wins * surprise
    else:
        flow = _tie_flow(reward, wins, problem.ties)
    result = flow.sum(axis=2) - flow.sum(axis=1)
    if problem.choices is None:
        return result
    return result + _choices_evidence(reward, problem.choices)


def _pair_loss(
    reward: Float[Array, "x a"], wins: Float[Array, "x a a"], ties: Ties | None
) -> Float[Array, ""]:
    """Return the loss of comparisons and ties, summed over them."""
    margin = reward[:, :, None] - reward[:, None, :]
    if ties is None:
        return jnp.sum(wins * jax.nn.softplus(-margin))
    tie_loss = jnp.sum(jnp.asarray(ties.counts) * ties.tie_loss(margin))
    return jnp.sum(wins * ties.win_loss(margin)) + tie_loss


def _choices_loss(reward: Float[Array, "x a"], choices: Choices) -> Float[Array, ""]:
    """Return the loss of choices under the Plackett-Luce model, summed over them."""
    subsets = jnp.asarray(choices.subsets).astype(bool)
    rewards = reward[jnp.asarray(choices.contexts).astype(jnp.int32)]
    top = jnp.max(rewards, axis=1, where=subsets, initial=-jnp.inf, keepdims=True)
    # A row without actions, as of a batch with fewer sets, has no choices either.
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    below_top = jnp.where(subsets, rewards - top, 0.0)
    partition = jnp.sum(jnp.where(subsets, jnp.exp(below_top), 0.0), axis=1, keepdims=True)
    log_partition = jnp.log(jnp.where(partition > 0, partition, 1.0))
    return jnp.sum(jnp.asarray(choices.wins) * (log_partition - below_top))


def _tie_flow(
    reward: Float[Array, "x a"], wins: Float[Array, "x a a"], ties: Ties
) -> Float[Array, "x a a"]:
    """Return the derivative of the negative loss of each pair in its margin."""
    margin = reward[:, :, None] - reward[:, None, :]
    finite = jnp.isfinite(margin)
    margin = jnp.where(finite, margin, 0.0)
    by_win = jax.grad(lambda margin: jnp.sum(wins * ties.win_loss(margin)))(margin)
    by_tie = jax.grad(lambda margin: jnp.sum(jnp.asarray(ties.counts) * ties.tie_loss(margin)))(
        margin
    )
    # Beyond a divergent reward there are wins of the other action only, without surprise.
    return jnp.where(finite, -(by_win + by_tie), 0.0)


def _choices_evidence(reward: Float[Array, "x a"], choices: Choices) -> Float[Array, "x a"]:
    contexts = jnp.asarray(choices.contexts).astype(jnp.int32)
    wins, rewards = jnp.asarray(choices.wins), reward[contexts]
    finite = jnp.asarray(choices.subsets).astype(bool) & (rewards > -jnp.inf)
    probability = jax.nn.softmax(rewards, axis=1, where=finite)
    decided = finite.any(axis=1, keepdims=True)
    flow = wins - wins.sum(axis=1, keepdims=True) * jnp.where(finite, probability, 0.0)
    return jnp.zeros_like(reward).at[contexts].add(jnp.where(decided, flow, 0.0))


def expected_wins(
    reward: Float[ArrayLike, "x a"], comparisons: Float[ArrayLike, "x a a"]
) -> Float[Array, "x a a"]:
    r"""Return the expected win counts of comparisons that a reward labels.

    Args:
        reward: reward :math:`r^\star` that labels the comparisons.
        comparisons: ``comparisons[x, i, j]``, the number of comparisons of the ordered pair
            ``(i, j)`` in context ``x``.

    Returns:
        Win counts :math:`W_{xij} = (n_{xij} + n_{xji})\,\sigma(r_i-r_j)`.

    Examples:
        >>> n = jnp.array([[[0.0, 4.0], [0.0, 0.0]]])
        >>> expected_wins(jnp.zeros((1, 2)), n).tolist()
        [[[0.0, 2.0], [2.0, 0.0]]]
    """
    reward, comparisons = jnp.asarray(reward), jnp.asarray(comparisons)
    win_rate = preference_probability(reward[:, :, None], reward[:, None, :])
    return (comparisons + comparisons.mT) * win_rate


def sample_wins(
    key: Key[Array, ""],
    reward: Float[ArrayLike, "x a"],
    comparisons: Float[ArrayLike, "x a a"],
) -> Float[Array, "x a a"]:
    r"""Draw the labels of comparisons from the Bradley-Terry model and count the wins.

    The number of wins of each ordered pair is binomial, so the cost does not grow with the counts.

    Args:
        key: random key, of ``jax.random.key``.
        reward: reward :math:`r^\star` that labels the comparisons.
        comparisons: ``comparisons[x, i, j]``, the number of comparisons of the ordered pair
            ``(i, j)`` in context ``x``; whole numbers.

    Returns:
        Win counts; their sum is the sum of ``comparisons``.

    References:
        `liu:24`, eqs. 2.1 and 2.2.

    Examples:
        >>> n = jnp.array([[[0.0, 4.0], [0.0, 0.0]]])
        >>> float(sample_wins(jax.random.key(0), jnp.zeros((1, 2)), n).sum())
        4.0
    """
    reward, comparisons = jnp.asarray(reward), jnp.asarray(comparisons)
    win_rate = preference_probability(reward[:, :, None], reward[:, None, :])
    first_wins = jax.random.binomial(key, comparisons, win_rate, dtype=comparisons.dtype)
    return first_wins + (comparisons - first_wins).mT


def curvature(reward_max: Float[ArrayLike, "..."] | float) -> Float[Array, "..."]:
    r"""Return the curvature constant of the paper, :math:`\kappa = (1+e^{R_{max}})^{-2}`.

    Args:
        reward_max: :math:`R_{max}`, the range of the rewards.

    Returns:
        :math:`\kappa` in (0, 1/4].

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> float(curvature(0.0))
        0.25
    """
    return (1.0 + jnp.exp(jnp.asarray(reward_max))) ** -2


def hellinger_curvature(reward_max: Float[ArrayLike, "..."] | float) -> Float[Array, "..."]:
    r"""Return the tight curvature constant, :math:`h = \sigma'(R_{max})/8`.

    It is the infimum of :math:`D_H^2(\mathrm{Ber}(\sigma z), \mathrm{Ber}(\sigma w))/(z-w)^2` over
    :math:`z, w \in [-R_{max}, R_{max}]`, approached as both tend to :math:`R_{max}`;
    :math:`\sqrt h` may replace :math:`\kappa` in the guarantee.

    Args:
        reward_max: :math:`R_{max}`, the range of the rewards.

    Returns:
        :math:`h` in (0, 1/32].

    Examples:
        >>> float(hellinger_curvature(0.0))
        0.03125
    """
    reward_max = jnp.asarray(reward_max)
    return jax.nn.sigmoid(reward_max) * jax.nn.sigmoid(-reward_max) / 8.0
