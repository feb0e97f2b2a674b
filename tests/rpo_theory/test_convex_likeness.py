"""Claims about convex-likeness: the meter bounds the gap, and Fan's condition is decided."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rpo_theory.convex_likeness import excess_over_mixture, meter, witness
from rpo_theory.objectives import minimax_objective, saddle_objective
from rpo_theory.rewards import FiniteClass
from rpo_theory.types import Problem

ROUNDING = 1e-12
SOLVER = 1e-9
"""Accuracy of gaps that are zero in exact arithmetic."""
METER = 1e-6
"""The same for the meter, which is of first order in the error of the mixture."""
PAIR = [[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]]


def no_data(beta: float = 0.5, eta: float = 1.0) -> Problem:
    base = np.array([[0.0, 0.0, 1.0]])
    return Problem(np.ones(1), np.full((1, 3), 1 / 3), base, np.zeros((1, 3, 3)), beta, eta)


def random_class(
    seed: int, n_members: int, shape: tuple[int, int], *, below: bool = False
) -> tuple[Problem, FiniteClass]:
    """Return a random problem; with ``below`` a last member lies below all others."""
    rng = np.random.default_rng(seed)
    n_contexts, n_actions = shape
    wins = rng.poisson(rng.uniform(0.0, 2.0), (n_contexts, n_actions, n_actions))
    reference = rng.dirichlet(np.ones(n_actions), n_contexts)
    problem = Problem(
        rng.dirichlet(np.ones(n_contexts)),
        reference,
        rng.dirichlet(np.ones(n_actions), n_contexts),
        wins * (1.0 - np.eye(n_actions)) * (not below),
        beta=float(10.0 ** rng.uniform(-1.0, 1.0)),
        eta=float(10.0 ** rng.uniform(-1.0, 1.0)),
    )
    rewards = rng.uniform(size=(n_members, *shape))
    if below:  # base on the first action, whose reward no other member exceeds
        problem = problem._replace(baseline_policy=np.eye(n_actions)[[0] * n_contexts])
        rewards[:, :, 0], rewards[-1, :, 1:] = 1.0, 0.0
    return problem, FiniteClass(rewards)


def test_closed_form_the_pair_and_its_completion() -> None:
    pair, whole = (
        FiniteClass(np.array(rows)) for rows in (PAIR * 4, [*PAIR * 3, PAIR[0], [[0.0, 0.0, 0.6]]])
    )
    apart, together = meter(no_data(), pair), meter(no_data(), whole)
    # At equal shares the worst policy gains 1/2 on the mean; the gap has a closed form.
    assert float(apart.delta) == pytest.approx(0.5, abs=SOLVER)
    gap = 0.5 * np.log((np.exp(2.0) + np.exp(1.2) + 1.0) / (2.0 * np.exp(1.0) + np.exp(1.2)))
    assert float(apart.gap) == pytest.approx(gap, abs=SOLVER)
    assert witness(no_data(), pair) == (0, 1, 0.5)
    assert -ROUNDING <= float(together.gap) <= float(together.delta) + ROUNDING <= SOLVER
    assert int(together.member) == 7
    assert witness(no_data(), whole) is None


def test_closed_form_with_data_a_member_that_fits_worse_does_not_complete_the_class() -> None:
    problem = no_data()._replace(wins=np.array([[[0.0, 0.0, 0.0], [0.0] * 3, [1.0, 1.0, 0.0]]]))
    assert witness(problem, FiniteClass(np.array([*PAIR, [[0.0, 0.0, 0.6]]]))) is None
    against = problem._replace(wins=problem.wins.swapaxes(1, 2))
    found = witness(against, FiniteClass(np.array([*PAIR, [[0.0, 0.0, 0.6]]])))
    assert found is not None
    assert found[:2] == (0, 1)


def test_property_the_excess_is_the_largest_over_random_policies() -> None:
    problem, members = random_class(3, 8, (1, 3))
    rng = np.random.default_rng(0)
    mixture = rng.dirichlet(np.ones(8))
    excess = np.asarray(excess_over_mixture(problem, members, mixture))
    corners = [np.eye(3)[[a]] for a in range(3)]
    payoffs = jax.jit(jax.vmap(saddle_objective, (None, None, 0)))
    differences = [
        np.asarray(row) - mixture @ np.asarray(row)
        for row in (payoffs(problem, policy, members.rewards) for policy in corners)
    ]
    np.testing.assert_allclose(excess, np.max(differences, axis=0), atol=ROUNDING)


def test_property_a_witness_is_a_mixture_that_every_member_exceeds() -> None:
    for seed in range(5):
        problem, members = random_class(seed, 4, (1, 3))
        found = witness(problem, members)
        assert found is not None
        mixture = np.zeros(4)
        mixture[[found.first, found.second]] = found.share, 1.0 - found.share
        assert np.asarray(excess_over_mixture(problem, members, mixture)).min() > 0.0
        assert witness(*random_class(seed, 4, (1, 3), below=True)) is None


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (3, 3), (1, 6)])
@pytest.mark.parametrize("below", [False, True])
def test_theorem_the_meter_is_never_below_the_gap_and_zero_with_it(
    shape: tuple[int, int], below: bool
) -> None:
    zeros = 0
    for seed in range(25):
        problem, members = random_class(seed, 8, shape, below=below)
        found = meter(problem, members)
        values = [float(minimax_objective(problem, row)) for row in np.asarray(members.rewards)]
        gap = min(values) - float(found.maximin_value)
        assert float(found.gap) == pytest.approx(gap, abs=ROUNDING)
        assert gap - ROUNDING <= float(found.delta)
        assert (gap <= SOLVER) == (float(found.delta) <= METER)
        if witness(problem, members) is None:
            assert gap <= SOLVER
            zeros += 1
    assert zeros == 25 or not below
