"""Influence of votes against exact solutions without them."""

from __future__ import annotations

import csv
import inspect
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rpo_theory import minimax
from rpo_theory.influence import influence
from rpo_theory.policies import chosen_policy
from rpo_theory.problems import Problem
from rpo_theory.rewards import TabularBox

BOX = TabularBox(4.0)


def without_each(problem: Problem, votes: tuple[np.ndarray, ...], *, follow: bool) -> Problem:
    """Return one problem per distinct vote, in which that vote was cast once less."""
    count = len(votes[0])
    wins = np.repeat(np.asarray(problem.wins)[None], count, axis=0)
    wins[(np.arange(count), *votes)] -= 1.0
    same = problem._replace(wins=np.zeros(()))
    batch = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *np.shape(leaf))), same)
    batch = batch._replace(wins=wins)
    if not follow:
        return batch
    baseline = jax.vmap(lambda w: chosen_policy(w, problem.reference_policy))(wins)
    shares = wins.sum(axis=(2, 3)) / wins.sum(axis=(1, 2, 3))[:, None]
    return batch._replace(baseline_policy=np.asarray(baseline), context_weights=shares)


def correlation(problem: Problem, *, follow: bool) -> tuple[float, float]:
    """Return the correlation of predicted and exact changes of the policy, and the seconds."""
    options: dict[str, Any] = {"baseline": "chosen", "weights": "comparisons"} if follow else {}
    start = time.perf_counter()
    found = influence(problem, BOX, **options)
    seconds = time.perf_counter() - start
    votes = (found.context, found.winner, found.loser)
    others = minimax.solve_batch(without_each(problem, votes, follow=follow), BOX)
    exact = others.policy - minimax.solve(problem, BOX).policy
    return float(np.corrcoef(exact.ravel(), found.left_out.ravel())[0, 1]), seconds


@pytest.mark.parametrize("follow", [False, True])
def test_parity_influence_predicts_leaving_out_a_vote(follow: bool) -> None:
    rng = np.random.default_rng(0)
    wins = rng.poisson(30.0, (2, 3, 3)) * (1 - np.eye(3, dtype=int)) + 0.0
    problem = Problem.from_wins(wins, beta=0.5, eta=0.05)
    assert correlation(problem, follow=follow)[0] > 0.99


def test_parity_a_vote_among_few_is_left_out_as_by_a_new_solution() -> None:
    """Take votes whose removal changes which rewards are at a bound."""
    wins = np.random.default_rng(1).poisson(0.7, (12, 4, 4)) * (1.0 - np.eye(4))
    problem = Problem.from_wins(wins, beta=0.5, eta=0.05)
    found = influence(problem, BOX)
    votes = (found.context, found.winner, found.loser)
    others = minimax.solve_batch(without_each(problem, votes, follow=False), BOX)
    exact = others.policy - minimax.solve(problem, BOX).policy
    np.testing.assert_allclose(found.left_out, exact, atol=1e-6)


def test_gradient_value_is_that_of_the_policy() -> None:
    wins = np.array([[[0.0, 6.0, 2.0], [3.0, 0.0, 4.0], [1.0, 2.0, 0.0]]])
    problem = Problem.from_wins(wins, beta=0.5, eta=0.2)
    rewards = np.array([[1.0, 0.0, 0.5]])
    found = influence(problem, BOX, rewards)
    np.testing.assert_allclose(np.asarray(found.value), found.policy[:, 0] @ rewards[0], rtol=1e-12)


def test_raises_without_votes_and_for_unknown_options() -> None:
    problem = Problem(
        np.ones(1), np.full((1, 2), 0.5), np.full((1, 2), 0.5), np.zeros((1, 2, 2)), 1.0, 1.0
    )
    with pytest.raises(ValueError, match="`wins` must hold votes"):
        influence(problem, BOX)
    unknown: Any = {"baseline": "reference"}
    # Without the type checks of the tests, as a user calls it.
    unchecked = inspect.unwrap(influence)
    with pytest.raises(ValueError, match="`baseline` must be 'fixed' or 'chosen'"):
        unchecked(problem._replace(wins=np.ones((1, 2, 2))), BOX, **unknown)


@pytest.mark.slow
@pytest.mark.parametrize("follow", [False, True])
def test_parity_influence_of_real_votes(shared_data: Path, follow: bool) -> None:
    path = shared_data / "pandalm-votes.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [[row[name] for row in rows] for name in ("context", "winner", "loser")]
    counts = [int(row["count"]) for row in rows]
    contexts, winners, losers = columns
    problem = Problem.from_votes(contexts, winners, losers, counts, beta=0.5, eta=0.05)
    measured, seconds = correlation(problem, follow=follow)
    print(f"{len(rows)} distinct votes in {seconds:.1f} s, compilation included")
    assert measured >= 0.99
