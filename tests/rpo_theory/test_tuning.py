"""The path of solutions in eta, and the rules that pick a point of it."""

from __future__ import annotations

import numpy as np
import pytest

from rpo_theory import minimax
from rpo_theory.preference import data_loss, negative_log_likelihood
from rpo_theory.problems import Problem
from rpo_theory.rewards import TabularBox
from rpo_theory.tuning import eta_path, tune_eta

WINS = np.array([[[0.0, 6.0, 2.0], [3.0, 0.0, 4.0], [1.0, 2.0, 0.0]]])
HELD_OUT = np.array([[[0.0, 3.0, 2.0], [2.0, 0.0, 1.0], [2.0, 2.0, 0.0]]])
BOX = TabularBox(3.0)
ROUNDING = 1e-12


def problem() -> Problem:
    return Problem.from_wins(WINS, beta=0.5, eta=1.0)


def test_property_data_loss_rises_and_penalty_falls_along_the_path() -> None:
    path = eta_path(problem(), BOX, np.geomspace(1e-3, 1e2, 13))
    assert np.all(np.diff(path.data_loss) >= -ROUNDING)
    assert np.all(np.diff(path.penalty) <= ROUNDING)
    assert path.held_out_loss is None


def test_gradient_held_out_rule_finds_the_minimum() -> None:
    uniform = Problem.from_wins(WINS, beta=0.5, eta=1.0, baseline_policy="reference")
    tuned = tune_eta(uniform, BOX, held_out_wins=HELD_OUT, bounds=(1e-2, 1e2))
    path = eta_path(uniform, BOX, tuned.eta * np.array([0.9, 1.0, 1.1]), held_out_wins=HELD_OUT)
    assert path.held_out_loss is not None
    assert path.held_out_loss[1] <= path.held_out_loss.min()
    solution = minimax.solve(uniform._replace(eta=tuned.eta), BOX)
    np.testing.assert_allclose(tuned.loss, negative_log_likelihood(solution.reward, HELD_OUT))
    assert abs(tuned.derivative) < 1e-8


def test_property_discrepancy_rule_meets_its_level() -> None:
    tuned = tune_eta(problem(), BOX, delta=0.8, bounds=(1e-3, 1e3))
    zero = minimax.solve(problem()._replace(eta=0.0), BOX)
    excess = WINS.sum() * (tuned.loss - float(data_loss(problem(), zero.reward)))
    np.testing.assert_allclose(excess, np.log(1.25), rtol=1e-6)


def test_limit_discrepancy_rule_returns_the_bound_if_no_weight_reaches_the_level() -> None:
    tuned = tune_eta(problem(), BOX, delta=0.2, bounds=(1e-3, 1e3))
    np.testing.assert_allclose(tuned.eta, 1e3)
    zero = minimax.solve(problem()._replace(eta=0.0), BOX)
    excess = WINS.sum() * (tuned.loss - float(data_loss(problem(), zero.reward)))
    assert excess < np.log(5.0)


def test_raises_for_bounds_and_probabilities_out_of_range() -> None:
    with pytest.raises(ValueError, match="`bounds` must be increasing"):
        tune_eta(problem(), BOX, bounds=(1.0, 0.1))
    with pytest.raises(ValueError, match="`delta` must be"):
        tune_eta(problem(), BOX, delta=1.0)
