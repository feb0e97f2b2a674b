"""Rules for the weight of the adversary, against the functions of single problems."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bandits.environments.designs import Design, draw_design
from bandits.methods.base import FitContext
from bandits.methods.eta_rules import DELTA, GRID, RANGE, choose_eta, split_wins
from bandits.methods.registry import METHODS
from rpo_theory import tune_eta
from rpo_theory.rewards import Unbounded

DRAWS = draw_design(Design(actions=4, rare=1, reward_max=2.0), 60, np.arange(3))
CONTEXT = FitContext(seeds=np.array([5, 6, 7]))
BOUNDS = (RANGE[0] / 2.0, RANGE[1] / 2.0)


def single(index: int) -> tuple:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], (DRAWS.problem, DRAWS.reward_class))


def test_parity_the_discrepancy_rule_with_that_of_one_problem() -> None:
    chosen = choose_eta("discrepancy", DRAWS.problem, DRAWS.reward_class, CONTEXT)
    for index in range(3):
        tuned = tune_eta(*single(index), delta=DELTA, bounds=BOUNDS)
        assert chosen[index] == pytest.approx(tuned.eta, rel=1e-4)


def test_parity_the_hypergradient_with_that_of_one_problem() -> None:
    training, held_out = split_wins(DRAWS.problem, CONTEXT)
    chosen = choose_eta("hypergradient", DRAWS.problem, DRAWS.reward_class, CONTEXT)
    on_grid = choose_eta("heldout", DRAWS.problem, DRAWS.reward_class, CONTEXT)
    step = (BOUNDS[1] / BOUNDS[0]) ** (1.0 / (GRID - 1))
    for index in range(3):
        problem, reward_class = single(index)
        problem = problem._replace(wins=training.wins[index])
        tuned = tune_eta(problem, reward_class, held_out_wins=held_out[index], bounds=BOUNDS)
        assert chosen[index] == pytest.approx(tuned.eta, rel=1e-2)
        assert 1 / step <= chosen[index] / on_grid[index] <= step * (1 + 1e-9)


def test_property_the_split_depends_on_the_seed_and_divides_fractions() -> None:
    _, first = split_wins(DRAWS.problem, CONTEXT)
    _, again = split_wins(DRAWS.problem, CONTEXT)
    np.testing.assert_array_equal(first, again)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[1:2], DRAWS.problem)
    _, later = split_wins(rows, FitContext(seeds=np.array([6])))
    np.testing.assert_array_equal(later[0], first[1])
    _, proportional = split_wins(rows._replace(wins=rows.wins + 0.5), CONTEXT._replace(seeds=None))
    np.testing.assert_allclose(proportional, 0.25 * (rows.wins + 0.5))


def test_property_rpo_takes_the_weight_of_the_rule() -> None:
    eta = choose_eta("discrepancy", DRAWS.problem, DRAWS.reward_class, CONTEXT)
    rpo = METHODS["rpo"]
    by_rule = rpo(
        DRAWS.problem, DRAWS.reward_class, context=CONTEXT, baseline="given", eta="discrepancy"
    )
    by_hand = rpo(DRAWS.problem._replace(eta=eta), DRAWS.reward_class, baseline="given")
    np.testing.assert_array_equal(by_rule.policy, by_hand.policy)
    np.testing.assert_array_equal(
        choose_eta("given", DRAWS.problem, DRAWS.reward_class, CONTEXT), DRAWS.problem.eta
    )
    assert rpo.options(eta="heldout").sets_eta()
    assert not rpo.options().sets_eta()


def test_raises_over_all_rewards() -> None:
    with pytest.raises(ValueError, match="must be compact and convex for the rule heldout, got Un"):
        choose_eta("heldout", DRAWS.problem, Unbounded(), CONTEXT)
