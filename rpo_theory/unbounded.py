r"""Infimum of the minimax objective over all rewards: whether it is finite and attained.

In a direction :math:`d` of rewards, :math:`F` grows at the rate

.. math:: F_\infty(d) = \sum_x\Big\{\eta d_0(x)\big[\max_{supp\,\pi_{ref}} d - E_{\pi_{base}}d\big]
          + \frac1N\sum_{w,l}W_{xwl}(d_l-d_w)_+\Big\},

and :math:`F - F_\infty` is bounded. So :math:`F` is bounded below if and only if no direction has a
negative rate. The rate is the Lovasz extension of a submodular function of sets of responses, and
the condition is therefore one about sets: for every context and set :math:`S`,

.. math:: \eta d_0(x)\big[1\{S\cap supp\,\pi_{ref}\ne\emptyset\} - \pi_{base}(S|x)\big]
          + \frac1N\sum_{w\notin S,\,l\in S}W_{xwl} \ge 0.

This is a minimum cut. By duality the adversary is bounded if and only if the mass of the baseline
can flow to the support of the reference along losses: a response passes mass on to those that beat
it, at most :math:`W_{xwl}/N` for each.

A choice from a set counts as a win against every other action of the set, and a tie as wins of both
actions with the weight of its model. For choices this decides the directions of rate zero, not the
rates, so the mass of the baseline must be on the support of the reference from the start.

The directions of rate zero are those that do not decrease along an arc of the residual network of a
maximum flow. If every such arc is part of a cycle, they are directions in which :math:`F` is
constant, and the minimum is attained. Otherwise rewards of some responses grow without bound
relative to others. In the limit the comparisons between them contribute nothing, or a linear
function if all of their capacity is used, and the reduced problem without them has a minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .numerics import max_flow
from .objectives import minimax_objective
from .observations import n_observations, preferred_counts
from .policies import log_partition
from .preference_data import Choices
from .types import ArrayLike, Problem, Solution, Status

ROUNDING = 1e-12
"""Relative differences between capacities and flows below this number count as rounding."""


class ReducedProblem(NamedTuple):
    r"""Problem without the comparisons between responses whose rewards diverge from each other.

    Attributes:
        problem: the problem without these comparisons. Its reference policy is zero at responses
            that lose their probability in the limit. Its baseline absorbs comparisons that become
            linear, so it may have negative entries, and its ``eta`` and objective are relative to
            the remaining comparisons.
        share: share of the comparisons that remain. The infimum of the original problem is
            ``share`` times that of ``problem``.
        growth: 1 where the reward tends to infinity, -1 where it tends to minus infinity, 0 where
            it stays finite.
        attained: whether the infimum is attained.
        bounded: whether the infimum is finite.
    """

    problem: Problem
    share: Float[Array, ""]
    growth: Int[Array, "x a"]
    attained: Bool[Array, ""]
    bounded: Bool[Array, ""]

    @property
    def kept(self) -> Bool[Array, "x a"]:
        """Responses whose reward stays finite."""
        return self.growth == 0


class _Context(NamedTuple):
    """What the residual network of one context says.

    Attributes:
        above: whether the reward of the second response grows relative to that of the first.
        growth: see :class:`ReducedProblem`.
        shift: change of the weighted baseline by the comparisons that become linear.
        bounded: whether the infimum is finite.
    """

    above: Bool[Array, "a a"]
    growth: Int[Array, " a"]
    shift: Float[Array, " a"]
    bounded: Bool[Array, ""]


def reduce(problem: Problem) -> ReducedProblem:
    """Remove what diverges from a problem whose adversary may choose any reward.

    Args:
        problem: preference data, policies and weights.

    Returns:
        The reduced problem. If the infimum is not finite, every policy has the same worst case, and
        the reduced problem is the one whose solution is the reference policy.
    """
    wins, reference = jnp.asarray(problem.wins), jnp.asarray(problem.reference_policy)
    baseline = jnp.asarray(problem.baseline_policy)
    weights = jnp.asarray(problem.eta * jnp.asarray(problem.context_weights))
    n_data = _or_one(n_observations(problem))
    contexts = jax.vmap(_analyze)(
        weights, reference > 0, weights[:, None] * baseline, preferred_counts(problem) / n_data
    )
    bounded = contexts.bounded.all()
    remaining = jnp.where((contexts.above | contexts.above.mT) | ~bounded, 0.0, wins)
    reduced = problem._replace(
        wins=remaining, choices=_without_lower(problem.choices, contexts.above)
    )
    n_remaining = n_observations(reduced)
    share = jnp.where(n_remaining > 0, n_remaining / n_data, 1.0)
    shifted = baseline + contexts.shift / _or_one(weights)[:, None]
    return ReducedProblem(
        problem=reduced._replace(
            reference_policy=jnp.where((contexts.growth == 0) | ~bounded, reference, 0.0),
            baseline_policy=jnp.where(bounded, shifted, reference),
            eta=problem.eta / share,
        ),
        share=share,
        growth=jnp.where(bounded, contexts.growth, 0),
        attained=~jnp.any(contexts.above),
        bounded=bounded,
    )


def normalized(reduced: ReducedProblem, reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
    r"""Return rewards with :math:`Z_r=1` for a minimizer of the reduced problem.

    Args:
        reduced: the reduced problem.
        reward: a minimizer of its objective.

    Returns:
        Finite rewards. Where nothing determines the mean reward of a component of the comparisons,
        it is zero before the normalization.
    """
    problem = reduced.problem
    reference = jnp.asarray(problem.reference_policy)
    adversarial = (problem.eta * jnp.asarray(problem.context_weights) > 0)[:, None]
    connected = _components(preferred_counts(problem))
    determined = adversarial & jnp.any(connected & (reference > 0)[:, None, :], axis=2)
    reward = reward - jnp.where(determined, 0.0, _means(connected, reward))
    log_z = log_partition(jnp.where(reduced.kept, reward, 0.0), reference, problem.beta)
    return reward - problem.beta * log_z[:, None]


def take_limit(reduced: ReducedProblem, solution: Solution) -> Solution:
    """Return the solution over all rewards from that of the reduced problem.

    Args:
        reduced: the reduced problem.
        solution: its solution, with finite rewards and the value of the original problem.

    Returns:
        The solution with infinite rewards where they diverge, and the status that follows. If the
        infimum is not finite, every policy is optimal, and the reference policy is returned.
    """
    infinite = jnp.where(reduced.growth > 0, jnp.inf, -jnp.inf)
    reward = jnp.where(reduced.kept, solution.reward, infinite)
    diverging = (solution.status == Status.SOLVED.value) & ~reduced.attained
    status = jnp.where(diverging, Status.NOT_ATTAINED.value, solution.status)
    bounded = reduced.bounded
    return solution._replace(
        policy=jnp.where(bounded, solution.policy, reduced.problem.reference_policy),
        reward=jnp.where(bounded, reward, 0.0),
        objective=jnp.where(bounded, solution.objective, -jnp.inf),
        status=jnp.where(bounded, status, Status.UNBOUNDED.value),
    )


def limit_objective(problem: Problem, reward: Float[Array, "x a"]) -> Float[Array, ""]:
    r"""Return :math:`F` of a reward, as a limit if rewards diverge as the infimum requires.

    Args:
        problem: preference data, policies and weights.
        reward: rewards, infinite where they diverge. Those that diverge together count as equal.

    Returns:
        Nats.
    """
    reduced = reduce(problem)
    growth = jnp.where(jnp.isfinite(reward), 0, jnp.where(reward > 0, 1, -1))
    finite = jnp.where(growth == 0, reward, 0.0)
    limit = reduced.share * minimax_objective(reduced.problem, finite)
    diverges = jnp.any(growth != 0) & jnp.all(growth == reduced.growth)
    return jnp.where(diverges, limit, minimax_objective(problem, reward))


def component_means(
    reward: Float[Array, "x a"], wins: Float[Array, "x a a"]
) -> Float[Array, "x a"]:
    """Return the mean reward over the connected component of each response.

    Components are those of the comparison graph. Gradient descent on the likelihood never changes
    their means, so subtracting them gives the limit of descent from the zero reward (for DPO, from
    the reference policy).

    Args:
        reward: rewards.
        wins: win counts.

    Returns:
        Means, shape ``[x a]``.
    """
    return _means(_components(wins), reward)


def _analyze(
    weight: Float[Array, ""],
    support: Bool[Array, " a"],
    mass: Float[Array, " a"],
    shares: Float[Array, "a a"],
) -> _Context:
    """Route the mass of the baseline to the support of the reference, and read the network.

    The sink, the last node, stands for the highest reward in the support. Mass of the baseline on
    the support is there from the start; the rest flows from losers to winners.
    """
    n_actions = len(mass)
    lost_to = jnp.where(jnp.eye(n_actions, dtype=bool), 0.0, shares.T)
    capacity = jnp.zeros((n_actions + 1, n_actions + 1), mass.dtype)
    capacity = capacity.at[:-1, :-1].set(lost_to)
    to_sink = jnp.where(support & (weight > 0), jnp.inf, 0.0)
    capacity = capacity.at[:-1, -1].set(to_sink)
    size = jnp.minimum(jnp.maximum(capacity, capacity.T), weight)
    tolerance = ROUNDING * jnp.where(weight > 0, size, 1.0)

    start = max_flow.Flow(
        capacity.at[-1, :-1].set(jnp.where(support, mass, 0.0)),
        jnp.append(jnp.where(support, 0.0, mass), 0.0),
    )
    flow = max_flow.solve(jax.lax.stop_gradient(start), n_actions, tolerance)
    arcs = jnp.where(weight > 0, flow.residual > tolerance, capacity > 0)
    leads_to = max_flow.reachable(arcs)
    above = leads_to & ~leads_to.T
    saturated = above.T & (capacity - flow.residual > tolerance)
    linear = jnp.where(saturated, capacity, 0.0)[:-1, :-1]
    return _Context(
        above=above[:-1, :-1],
        growth=_growth(leads_to, support, weight > 0),
        shift=linear.sum(axis=0) - linear.sum(axis=1) - _imbalance(linear, mass, leads_to, weight),
        bounded=flow.supply.sum() <= ROUNDING * weight,
    )


def _growth(
    leads_to: Bool[Array, "v v"], support: Bool[Array, " a"], adversarial: Bool[Array, ""]
) -> Int[Array, " a"]:
    """Return the sign of the growth of each reward relative to the highest in the support.

    Rewards grow in proportion to the number of nodes below minus the number above, which separates
    all responses that rates of zero can separate. With an adversarial term the sink is the level.
    """
    below = (leads_to & ~leads_to.T).sum(axis=0)
    above = (leads_to & ~leads_to.T).sum(axis=1)
    rate = below - above
    with_sink = max_flow.reachable(leads_to | leads_to.T)[:-1, -1]
    highest = jnp.where(support, rate[:-1], -len(rate)).max()
    level = jnp.where(adversarial, jnp.where(with_sink, rate[-1], 0), highest)
    return jnp.sign(rate[:-1] - level)


def _imbalance(
    linear: Float[Array, "a a"],
    mass: Float[Array, " a"],
    leads_to: Bool[Array, "v v"],
    weight: Float[Array, ""],
) -> Float[Array, " a"]:
    """Return the rounding by which a component misses its mass: all at the sink, none elsewhere."""
    together = (leads_to & leads_to.T)[:-1].astype(mass.dtype)
    shifted = mass + linear.sum(axis=0) - linear.sum(axis=1)
    excess = together[:, :-1] @ shifted - together[:, -1] * weight
    return jnp.where(linear.any(), excess / together[:, :-1].sum(axis=1), 0.0)


def _without_lower(choices: Choices | None, above: Bool[Array, "x a a"]) -> Choices | None:
    """Return choices without the actions whose reward falls relative to that of the winner.

    A set may be left with its winner alone. The choice then has no loss, and still counts in N.
    """
    if choices is None:
        return None
    chosen = jnp.asarray(choices.wins) > 0
    below = above[jnp.asarray(choices.contexts).astype(jnp.int32)]
    lower = jnp.any(below & chosen[:, None, :], axis=2)
    return choices._replace(subsets=jnp.asarray(choices.subsets).astype(bool) & ~lower)


def _components(wins: Float[Array, "x a a"]) -> Bool[Array, "x a a"]:
    return max_flow.reachable((wins > 0) | (wins.mT > 0))


def _means(connected: Bool[Array, "x a a"], reward: Float[Array, "x a"]) -> Float[Array, "x a"]:
    connected = connected.astype(reward.dtype)
    return jnp.einsum("xab,xb->xa", connected, reward) / connected.sum(axis=2)


def _or_one(values: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """Replace values that are not positive by one, for use as denominators."""
    values = jnp.asarray(values)
    return jnp.where(values > 0, values, 1.0)
