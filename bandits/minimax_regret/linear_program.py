r"""Exact minimax regret over finitely many worlds and outcomes, a linear program.

A decision rule :math:`\delta(a|o)` maps every outcome to a policy. Its regret in world :math:`i` is
its expected gap, and the best possible rule solves

.. math:: \min_{\delta, t} t \quad\text{subject to}\quad
          \sum_o p_i(o)\,\langle\delta(o), gap_i\rangle \le t \text{ for all } i.

The dual maximizes the Bayes risk of a prior :math:`w` over the worlds, a concave function of only
:math:`m` variables,

.. math:: B(w) = \sum_o \min_a \sum_i w_i\,p_i(o)\,gap_i(a).

A zero-sum game between the worlds and the rules is solved by cutting planes: every prior yields its
Bayes rule, and the rules found so far form a small linear program (HiGHS), whose value bounds the
minimax regret from above and whose multipliers mix the rules (`mcmahan:03`). New priors lie halfway
between the best prior and that of the linear program, which prevents oscillation (`benameur:07`).
The cost of a round is linear in the number of outcomes. Both bounds of the result are computed from
the returned rule and prior alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog

TOLERANCE = 1e-12
"""Distance between the two bounds at which the search ends, as a share of the largest gap."""
REFINEMENT = 1e-6
"""Size of the error, after a first solve, that the second solve of a linear program resolves."""
MAX_ROUNDS = 2000
"""Largest number of Bayes rules."""


class MinimaxRule(NamedTuple):
    r"""A decision rule whose worst-case regret is the smallest possible, with its proof.

    Attributes:
        policy: :math:`\delta(a|o)`, the policy that the rule takes at each outcome, shape
            ``[o a]``; each row sums to one.
        prior: least favorable prior :math:`w` over the worlds, shape ``[m]``.
        minimax_regret: worst-case regret of the rule, an upper bound on the minimax regret.
        lower_bound: Bayes risk of the prior, which no rule can improve on.
        rounds: number of Bayes rules that were computed.
    """

    policy: Float[np.ndarray, "o a"]
    prior: Float[np.ndarray, " m"]
    minimax_regret: float
    lower_bound: float
    rounds: int

    @property
    def duality_gap(self) -> float:
        """Upper minus lower bound; the rule is optimal up to this number, in units of reward."""
        return self.minimax_regret - self.lower_bound


def expected_gaps(
    policy: Float[np.ndarray, "o a"],
    probability: Float[np.ndarray, "m o"],
    gaps: Float[np.ndarray, "m a"],
) -> Float[np.ndarray, " m"]:
    r"""Return the regret of a decision rule in every world, its expected gap over the outcomes.

    .. math:: \sum_o p_i(o)\,\langle\delta(o), gap_i\rangle

    Args:
        policy: policy of the rule at each outcome.
        probability: probability of each outcome in each world.
        gaps: gap of each action in each world, see
            :func:`bandits.minimax_regret.worlds.action_gaps`.

    Returns:
        Units of reward, at least 0.

    Examples:
        >>> policy = np.array([[1.0, 0.0], [0.5, 0.5]])
        >>> expected_gaps(policy, np.array([[0.75, 0.25]]), np.array([[0.0, 2.0]])).tolist()
        [0.25]
    """
    return np.einsum("ma,ma->m", probability @ policy, gaps)


def bayes_risk(
    prior: Float[np.ndarray, " m"],
    probability: Float[np.ndarray, "m o"],
    gaps: Float[np.ndarray, "m a"],
) -> float:
    r"""Return the smallest mean regret that a rule can have if a prior draws the world.

    .. math:: B(w) = \sum_o \min_a \sum_i w_i\,p_i(o)\,gap_i(a)

    Args:
        prior: probability of each world.
        probability: probability of each outcome in each world.
        gaps: gap of each action in each world.

    Returns:
        Units of reward. No rule has a smaller worst-case regret.

    Examples:
        >>> gaps = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> bayes_risk(np.array([0.5, 0.5]), np.array([[0.8, 0.2], [0.2, 0.8]]), gaps)
        0.2
    """
    return float(_posterior_costs(prior, probability, gaps).min(axis=1).sum())


def solve_minimax(
    probability: Float[np.ndarray, "m o"],
    gaps: Float[np.ndarray, "m a"],
    *,
    tolerance: float = TOLERANCE,
    max_rounds: int = MAX_ROUNDS,
) -> MinimaxRule:
    r"""Return the decision rule with the smallest worst-case regret.

    Args:
        probability: probability of each outcome in each world; rows sum to one.
        gaps: gap of each action in each world, at least 0.
        tolerance: distance between the bounds at which the search ends, as a share of the largest
            gap. It also ends once rounding prevents progress.
        max_rounds: largest number of Bayes rules, at least 1.

    Returns:
        The rule, the least favorable prior and both bounds. The duality gap proves how far the
        regret is from the smallest possible, whatever ended the search.

    Raises:
        ValueError: if an array is empty, or a number is negative or not finite.
        RuntimeError: if HiGHS fails on the small linear program of a round.

    References:
        `mcmahan:03` for the game, `benameur:07` for the priors of new rounds.

    Examples:
        >>> gaps = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> solution = solve_minimax(np.array([[0.8, 0.2], [0.2, 0.8]]), gaps)
        >>> round(solution.minimax_regret, 9), solution.prior.round(6).tolist()
        (0.2, [0.5, 0.5])
    """
    _check_arguments(probability, gaps, max_rounds)
    scale = max(float(gaps.max()), np.finfo(np.float64).tiny)
    gaps = gaps / scale  # the tolerances of HiGHS are absolute
    candidate = best = query = np.full(len(gaps), 1.0 / len(gaps))
    lower, upper, mixture = -np.inf, np.inf, np.ones(1)
    rules: list[Int[np.ndarray, " o"]] = []
    cuts: list[Float[np.ndarray, " m"]] = []
    while upper - lower > tolerance and len(rules) < max_rounds:
        rule, risk = _bayes_rule(query, probability, gaps)
        rules.append(rule)
        cuts.append(expected_gaps(np.eye(gaps.shape[1])[rule], probability, gaps))
        if risk > lower:
            best, lower = query, risk
        if cuts[-1] @ candidate < upper - tolerance:
            candidate, upper, mixture = _solve_game(np.stack(cuts))
            query = 0.5 * (best + candidate)
        elif query is candidate:
            break  # rounding: the linear program already knows this rule
        else:
            query = candidate
    policy = _mixed_policy(rules, mixture, gaps.shape[1])
    return MinimaxRule(
        policy=policy,
        prior=best,
        minimax_regret=scale * float(expected_gaps(policy, probability, gaps).max()),
        lower_bound=scale * bayes_risk(best, probability, gaps),
        rounds=len(rules),
    )


def _bayes_rule(
    prior: Float[np.ndarray, " m"],
    probability: Float[np.ndarray, "m o"],
    gaps: Float[np.ndarray, "m a"],
) -> tuple[Int[np.ndarray, " o"], float]:
    """Return the action with the smallest posterior cost at each outcome, and the Bayes risk."""
    costs = _posterior_costs(prior, probability, gaps)
    return costs.argmin(axis=1), float(costs.min(axis=1).sum())


def _solve_game(
    cuts: Float[np.ndarray, "k m"],
) -> tuple[Float[np.ndarray, " m"], float, Float[np.ndarray, " k"]]:
    """Solve the game in which the rules are those found so far.

    HiGHS has absolute tolerances of 1e-10. The second solve is of the remaining error, enlarged.

    Returns:
        The best prior against the rules, the value of the game, and the best mixture of the rules.
    """
    n_rules, n_worlds = cuts.shape
    prior, value, mixture = np.full(n_worlds, 1.0 / n_worlds), 0.0, np.ones(n_rules)
    for scale in (1.0, REFINEMENT):
        risks = cuts @ prior
        result = linprog(  # the change of the prior and of the value, divided by `scale`
            np.append(np.zeros(n_worlds), -1.0),
            A_ub=np.hstack([-cuts, np.ones((n_rules, 1))]),
            b_ub=(risks - risks.min()) / scale,
            A_eq=np.append(np.ones(n_worlds), 0.0)[None],
            b_eq=np.zeros(1),
            bounds=[(-weight / scale, None) for weight in prior] + [(None, None)],
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if not result.success:
            raise RuntimeError(f"HiGHS did not solve the linear program: {result.message}")
        value = risks.min() - scale * result.fun
        prior = np.maximum(prior + scale * result.x[:-1], 0.0)
        prior /= prior.sum()
        mixture = np.maximum(-result.ineqlin.marginals, 0.0)
    return prior, float(value), mixture / mixture.sum()


def _mixed_policy(
    rules: Sequence[Int[np.ndarray, " o"]], mixture: Float[np.ndarray, " k"], n_actions: int
) -> Float[np.ndarray, "o a"]:
    """Return the policy of a rule that is drawn once, before the outcome is seen."""
    policy = np.zeros((len(rules[0]), n_actions))
    outcomes = np.arange(len(policy))
    for rule, weight in zip(rules, mixture, strict=False):  # rules of the last rounds weigh 0
        policy[outcomes, rule] += weight
    return policy / policy.sum(axis=1, keepdims=True)


def _posterior_costs(
    prior: Float[np.ndarray, " m"],
    probability: Float[np.ndarray, "m o"],
    gaps: Float[np.ndarray, "m a"],
) -> Float[np.ndarray, "o a"]:
    r"""Return :math:`\sum_i w_i\,p_i(o)\,gap_i(a)`."""
    return probability.T @ (prior[:, None] * gaps)


def _check_arguments(
    probability: Float[np.ndarray, "m o"], gaps: Float[np.ndarray, "m a"], max_rounds: int
) -> None:
    for name, values in (("probability", probability), ("gaps", gaps)):
        if not values.size:
            raise ValueError(f"`{name}` must not be empty, got shape {values.shape}")
        if not (np.isfinite(values) & (values >= 0.0)).all():
            raise ValueError(f"`{name}` must be finite and at least 0, got {values.min()}")
    if max_rounds < 1:
        raise ValueError(f"`max_rounds` must be at least 1, got {max_rounds}")
