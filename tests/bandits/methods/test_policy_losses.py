"""Losses of log-probabilities as methods, against SciPy and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from bandits.methods.policy_losses import LOSSES
from bandits.methods.registry import METHODS
from rpo_theory.rewards import LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem, Status

EXACT = 1e-6  # distance of a mean loss from its minimum
BETA, RANGE = 0.5, 2.0
WINS = np.array([[0.0, 7.0, 3.0], [2.0, 0.0, 4.0], [1.0, 5.0, 0.0]])
REFERENCE = np.array([0.5, 0.2, 0.3])
FLIP, SMOOTHING = 0.1, 1e-3


def problem_of(wins: np.ndarray, reference: np.ndarray, beta: float = BETA) -> Problem:
    return Problem(
        context_weights=np.ones((1, 1)),
        reference_policy=reference[None, None],
        baseline_policy=reference[None, None],
        wins=wins[None, None],
        beta=np.array([beta]),
        eta=np.array([0.1]),
    )


def fit(name: str, wins: np.ndarray = WINS, reference: np.ndarray = REFERENCE) -> Any:
    found = METHODS[name](problem_of(wins, reference), TabularBox(np.array([RANGE])))
    assert found.status[0] == Status.SOLVED.value
    np.testing.assert_allclose(found.policy.sum(), 1.0)
    return found


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def log_sigmoid(z: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -z)


Formula = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# Functions of the scaled log-ratios x of the winner and y of the loser, and of log pi of both.
FORMULAS: dict[str, Formula] = {
    "hinge": lambda x, y, p, q: np.maximum(0.0, 1 - (x - y)),
    "robust": lambda x, y, p, q: (
        ((FLIP - 1) * log_sigmoid(x - y) + FLIP * log_sigmoid(y - x)) / (1 - 2 * FLIP)
    ),
    "exo_pair": lambda x, y, p, q: (
        sigmoid(x - y) * (log_sigmoid(x - y) - np.log(1 - SMOOTHING))
        + sigmoid(y - x) * (log_sigmoid(y - x) - np.log(SMOOTHING))
    ),
    "discopop": lambda x, y, p, q: (
        -sigmoid((y - x) / 0.05) * log_sigmoid(x - y) + np.exp(y - x + log_sigmoid((x - y) / 0.05))
    ),
    "f_dpo": lambda x, y, p, q: -log_sigmoid(BETA * (np.exp(-y / BETA) - np.exp(-x / BETA))),
    "nca_pair": lambda x, y, p, q: -log_sigmoid(x) - 0.5 * log_sigmoid(-x) - 0.5 * log_sigmoid(-y),
    "bco_pair": lambda x, y, p, q: -log_sigmoid(x) - log_sigmoid(-y),
    "sppo_hard": lambda x, y, p, q: (x - 0.5) ** 2 + (y + 0.5) ** 2,
    "apo_zero": lambda x, y, p, q: 1 - sigmoid(x) + sigmoid(y),
    "apo_down": lambda x, y, p, q: sigmoid(x) + 1 - sigmoid(x - y),
    "cpo": lambda x, y, p, q: -log_sigmoid(BETA * (p - q)) - p,
    "slic": lambda x, y, p, q: np.maximum(0.0, 1 - p + q) - p,
}
WITHOUT_REFERENCE = {record.name for record in LOSSES if not record.has_reference}


def mean_loss(name: str, policy: np.ndarray, wins: np.ndarray = WINS) -> float:
    reference = np.ones(3) / 3 if name in WITHOUT_REFERENCE else REFERENCE
    log_policy = np.log(policy)
    x = BETA * (log_policy - np.log(reference))
    tables = FORMULAS[name](x[:, None], x[None], log_policy[:, None], log_policy[None])
    return float((wins * tables).sum() / wins.sum())


def of_reward(name: str, reward: np.ndarray) -> float:
    reference = np.ones(3) / 3 if name in WITHOUT_REFERENCE else REFERENCE
    logits = np.log(reference) + reward / BETA
    return mean_loss(name, np.exp(logits - np.logaddexp.reduce(logits)))


def by_scipy(name: str) -> float:
    """Return the smallest mean loss in the box from several starts."""
    starts = np.random.default_rng(0).uniform(0, RANGE, (12, 3))
    options: Any = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    found = [
        minimize(
            lambda reward: of_reward(name, reward),
            start,
            bounds=[(0.0, RANGE)] * 3,
            method="L-BFGS-B" if name not in ("hinge", "slic") else "Powell",
            options={} if name in ("hinge", "slic") else options,
        ).fun
        for start in starts
    ]
    return min(found)


def hinge_by_linear_program() -> float:
    """Minimize the sum of slacks of all comparisons with HiGHS."""
    rows = [(i, j) for i in range(3) for j in range(3) if WINS[i, j]]
    cost = np.concatenate([np.zeros(3), [WINS[pair] for pair in rows]]) / WINS.sum()
    above = np.zeros((len(rows), 3 + len(rows)))
    for number, (winner, loser) in enumerate(rows):
        above[number, [winner, loser, 3 + number]] = [-1, 1, -1]
    bounds = [(0, RANGE)] * 3 + [(0, None)] * len(rows)
    return float(linprog(cost, A_ub=above, b_ub=-np.ones(len(rows)), bounds=bounds).fun)


def check_minimum(name: str) -> None:
    found = fit(name)
    best = hinge_by_linear_program() if name == "hinge" else by_scipy(name)
    value = mean_loss(name, found.policy[0, 0])
    assert best - 1e-7 <= value <= best + EXACT, (name, value, best)


@pytest.mark.parametrize("name", ["hinge", "nca_pair", "apo_zero", "cpo"])
def test_parity_a_method_minimizes_its_loss_in_a_box(name: str) -> None:
    check_minimum(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [record.name for record in LOSSES])
def test_parity_every_method_minimizes_its_loss_in_a_box(name: str) -> None:
    check_minimum(name)


def test_closed_form_robust_dpo_estimates_the_true_rate_from_flipped_labels() -> None:
    """The minimizer has sigma(z) = (p - epsilon) / (1 - 2 epsilon) for the share p of wins."""
    wins = np.array([[0.0, 13.0], [7.0, 0.0]])
    found = fit("robust", wins, np.array([0.3, 0.7]))
    share = (0.65 - FLIP) / (1 - 2 * FLIP)
    margin = found.reward[0, 0, 0] - found.reward[0, 0, 1]
    assert margin == pytest.approx(np.log(share / (1 - share)), abs=1e-5)
    # The hinge of the same data stops at its margin, whatever the majority is.
    found = fit("hinge", wins, np.array([0.3, 0.7]))
    assert found.reward[0, 0, 0] - found.reward[0, 0, 1] == pytest.approx(1.0, abs=1e-5)


def test_property_a_ball_of_indicators_agrees_with_a_wide_box() -> None:
    features = np.eye(3)[None, None]
    ball = LinearBall(features, np.array([30.0]))
    box = TabularBox(np.array([60.0]))
    policies = [
        METHODS["robust"](problem_of(WINS, REFERENCE), space).policy for space in (ball, box)
    ]
    np.testing.assert_allclose(policies[0], policies[1], atol=1e-5)


def test_raises_for_classes_and_options_out_of_range() -> None:
    problem = problem_of(WINS, REFERENCE)
    with pytest.raises(ValueError, match="must be TabularBox or LinearBall for hinge"):
        METHODS["hinge"](problem, Unbounded())
    with pytest.raises(ValueError, match=r"`robust_flip_probability` must be .* less than 0\.5"):
        METHODS["robust"](problem, TabularBox(np.array([1.0])), robust_flip_probability=0.5)
